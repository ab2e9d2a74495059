#include "ans.h"

#include <algorithm>
#include <vector>

namespace vq {
namespace {

constexpr int kPrecision = 24;
constexpr uint64_t kWord = uint64_t{1} << 32;  // the state is at least this while words are left
// The decoder looks symbols up by the upper bits of their part of 2^24, at most so many.
constexpr int kMostBucketBits = 12;

struct Interval {
  uint32_t start, frequency;
};

std::vector<Interval> intervals(const AnsTable& table) {
  std::vector<Interval> found(static_cast<size_t>(table.k));
  uint32_t start = 0;
  for (int64_t s = 0; s < table.k; ++s) {
    found[s] = {start, table.frequencies[s]};
    start += table.frequencies[s];
  }
  return found;
}

// Division by a frequency as a multiplication; exact for all 64-bit numbers.
struct Divisor {
  explicit Divisor(uint64_t d) : divisor(d), reciprocal(~uint64_t{0} / d) {}

  uint64_t operator()(uint64_t n) const {
#ifdef __SIZEOF_INT128__
    __extension__ using Wide = unsigned __int128;
    // The reciprocal is below 2^64 / d by 1 at most, and so is the quotient.
    const auto quotient = static_cast<uint64_t>(static_cast<Wide>(n) * reciprocal >> 64);
    return quotient + (n - quotient * divisor >= divisor);
#else
    return n / divisor;
#endif
  }

  uint64_t divisor, reciprocal;
};

// Symbols by their part of 2^24. A bucket is all parts with the same upper bits.
class Buckets {
 public:
  Buckets(const std::vector<Interval>& of, int64_t count) : intervals_(of.data()) {
    // A larger table than there are symbols to look up does not pay.
    int bits = 0;
    while (bits < kMostBucketBits && (int64_t{2} << bits) <= count) ++bits;
    shift_ = kPrecision - bits;
    first_.resize((size_t{1} << bits) + 1);
    uint32_t symbol = 0;
    for (size_t b = 0; b + 1 < first_.size(); ++b) {
      const auto part = static_cast<uint32_t>(b << shift_);
      while (part - of[symbol].start >= of[symbol].frequency) ++symbol;
      first_[b] = symbol;
    }
    first_.back() = static_cast<uint32_t>(of.size() - 1);
  }

  uint32_t operator[](uint32_t part) const {
    const uint32_t bucket = part >> shift_;
    uint32_t low = first_[bucket], high = first_[bucket + 1];
    while (low < high) {
      const uint32_t middle = high - (high - low) / 2;
      if (intervals_[middle].start <= part)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }

 private:
  const Interval* intervals_;
  int shift_;
  std::vector<uint32_t> first_;
};

}  // namespace

bool AnsTable::valid() const {
  uint64_t sum = 0;
  for (int64_t s = 0; s < k; ++s) {
    if (frequencies[s] == 0 || frequencies[s] >> kPrecision != 0) return false;
    sum += frequencies[s];
  }
  return sum == uint64_t{1} << kPrecision;
}

template <typename Symbol>
bool ans_push(const AnsTable& table, const Symbol* symbols, int64_t count, uint32_t* words,
              AnsStream& stream) {
  if (std::any_of(symbols, symbols + count, [&](Symbol s) { return int64_t{s} >= table.k; }))
    return false;
  struct Step {
    Divisor divide;
    uint64_t start;
  };
  std::vector<Step> steps;
  steps.reserve(static_cast<size_t>(table.k));
  for (const Interval& each : intervals(table))
    steps.push_back({Divisor(each.frequency), each.start});
  uint64_t state = stream.state;
  int64_t size = stream.size;
  for (int64_t i = count; i-- > 0;) {
    const auto& [divide, start] = steps[symbols[i]];
    // Without a branch, which nobody could predict.
    const bool full = state >> (64 - kPrecision) >= divide.divisor;
    words[size] = static_cast<uint32_t>(state);
    size += full;
    state >>= full ? 32 : 0;
    const uint64_t quotient = divide(state);
    state = (quotient << kPrecision) + (state - quotient * divide.divisor) + start;
  }
  stream = {state, size};
  return true;
}

template <typename Symbol>
void ans_pop(const AnsTable& table, const uint32_t* words, AnsStream& stream, Symbol* symbols,
             int64_t count) {
  const std::vector<Interval> all = intervals(table);
  const Interval* const interval = all.data();
  const Buckets buckets(all, count);
  uint64_t state = stream.state;
  int64_t size = stream.size;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t part = static_cast<uint32_t>(state) & ((1u << kPrecision) - 1);
    const uint32_t symbol = buckets[part];
    symbols[i] = static_cast<Symbol>(symbol);
    const Interval& found = interval[symbol];
    state = (state >> kPrecision) * found.frequency + (part - found.start);
    if (state < kWord && size > 0) state = state << 32 | words[--size];
  }
  stream = {state, size};
}

template bool ans_push(const AnsTable&, const uint8_t*, int64_t, uint32_t*, AnsStream&);
template bool ans_push(const AnsTable&, const uint16_t*, int64_t, uint32_t*, AnsStream&);
template bool ans_push(const AnsTable&, const uint32_t*, int64_t, uint32_t*, AnsStream&);
template void ans_pop(const AnsTable&, const uint32_t*, AnsStream&, uint8_t*, int64_t);
template void ans_pop(const AnsTable&, const uint32_t*, AnsStream&, uint16_t*, int64_t);
template void ans_pop(const AnsTable&, const uint32_t*, AnsStream&, uint32_t*, int64_t);

}  // namespace vq
