#include "fit_scalar.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

namespace vq {
namespace {

// Ascends as the float does.
uint32_t ascending_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits ^ ((0u - (bits >> 31)) | 0x80000000u);
}

// Even bins over the boundaries: most hold none, and a value in one of these needs no search.
class Bins {
 public:
  Bins(const float* boundaries, int64_t count) : low_(boundaries[0]) {
    scale_ = (kBins - 1) / (boundaries[count - 1] - low_);
    for (int64_t b = 0; b < count; ++b) ++first_[static_cast<size_t>(bin(boundaries[b])) + 1];
    for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
  }

  // Boundaries in lower bins, and with this bin's.
  const int32_t* range(float v) const { return first_.data() + bin(v); }

 private:
  static constexpr int32_t kBins = 1 << 12;

  // Never falls as v grows, however it rounds; NaN counts as low.
  int32_t bin(float v) const {
    const float at = (v - low_) * scale_;
    return at > 0 ? (at < kBins - 1 ? static_cast<int32_t>(at) : kBins - 1) : 0;
  }

  float low_, scale_;
  std::array<int32_t, kBins + 1> first_{};
};

// best[q][j] = max_i best[q − 1][i] + gain(i, j) for all j of one q, with arg maxima that ascend.
struct Layer {
  const double* mass;
  const double* moment;
  const double* before;
  double* best;
  int32_t* cut;

  void solve(int64_t first, int64_t last, int64_t low, int64_t high) const {
    if (first > last) return;
    const int64_t j = (first + last) / 2;
    double most = -std::numeric_limits<double>::infinity();
    int64_t at = low;
    for (int64_t i = low; i <= std::min(high, j - 1); ++i) {
      const double inside = std::max(mass[j] - mass[i], 1e-300), sum = moment[j] - moment[i];
      const double value = before[i] + sum * sum / inside;
      if (value > most) most = value, at = i;
    }
    best[j] = most;
    cut[j] = static_cast<int32_t>(at);
    solve(first, j - 1, low, at);
    solve(j + 1, last, at, high);
  }
};

}  // namespace

int64_t cell_count(const CellMap& map) {
  int64_t end = 0;
  for (int64_t bin = 0; bin < kCellBins; ++bin) {
    if (map.offset[bin] < 0 || map.shift[bin] > 16) return -1;
    end = std::max(end, map.offset[bin] + (int64_t(0xffff) >> map.shift[bin]) + 1);
  }
  return end;
}

void add_to_cells(const float* values, const float* mass, int64_t n, const CellMap& map,
                  double* sums) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = ascending_bits(values[i]);
    const int64_t cell = map.offset[bits >> 16] + ((bits & 0xffff) >> map.shift[bits >> 16]);
    const double weight = mass == nullptr ? 1.0 : mass[i];
    sums[2 * cell] += weight;
    sums[2 * cell + 1] += weight * values[i];
  }
}

void count_below(const float* values, int64_t n, const float* boundaries, int64_t count,
                 uint8_t* codes) {
  if (count == 0) {
    std::fill_n(codes, n, uint8_t{0});
    return;
  }
  const Bins bins(boundaries, count);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* range = bins.range(values[i]);
    const float* found =
        std::lower_bound(boundaries + range[0], boundaries + range[1], values[i]);
    codes[i] = static_cast<uint8_t>(found - boundaries);
  }
}

void optimal_starts(const double* mass, const double* moment, int64_t m, int64_t k,
                    int64_t* starts) {
  const auto width = static_cast<size_t>(m + 1);
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  std::vector<double> before(width, kNever), best(width);
  std::vector<int32_t> cuts(static_cast<size_t>(k) * width);
  for (int64_t j = 1; j <= m; ++j) {
    const double sum = moment[j] - moment[0];
    before[static_cast<size_t>(j)] = sum * sum / std::max(mass[j] - mass[0], 1e-300);
  }
  for (int64_t q = 1; q < k; ++q) {
    std::fill(best.begin(), best.end(), kNever);
    int32_t* cut = cuts.data() + static_cast<size_t>(q) * width;
    // q intervals need q points.
    Layer{mass, moment, before.data(), best.data(), cut}.solve(q + 1, m, q, m - 1);
    std::swap(before, best);
  }
  int64_t end = m;
  for (int64_t q = k - 1; q >= 0; --q) {
    end = q == 0 ? 0 : cuts[static_cast<size_t>(q) * width + static_cast<size_t>(end)];
    starts[q] = end;
  }
}

}  // namespace vq
