// The entropy coder against its definition, and streams from one machine to another.
//
// coder_test write FILE [PROBLEMS]: codes random symbols, checks them and keeps the streams.
// coder_test read FILE: reads what another machine's `write` has kept.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ans.h"
#include "buffer.h"
#include "random.h"

namespace {

constexpr uint32_t kWhole = 1u << 24;

struct Coded {
  int64_t width = 1;  // bytes of a symbol
  std::vector<uint32_t> frequencies, symbols, words;
  vq::AnsStream stream{0, 0};

  vq::AnsTable table() const {
    return {frequencies.data(), static_cast<int64_t>(frequencies.size())};
  }
};

Coded random_symbols(Random& random) {
  Coded coded;
  const int64_t k = 1 + random.size(random.one_in(8) ? 70'000 : 300);
  coded.width = k > 65'536 || random.one_in(4) ? 4 : k > 256 || random.one_in(4) ? 2 : 1;
  // A few symbols have nearly all of the frequencies, or each has about the same.
  const int64_t some = random.one_in(2) ? std::min<int64_t>(k, 3) : k;
  std::vector<uint32_t> parts(static_cast<size_t>(k), 1);
  uint32_t left = kWhole - static_cast<uint32_t>(k);
  for (int64_t s = 0; s < some; ++s) {
    const uint32_t share = random.bits() % (left / static_cast<uint32_t>(some - s) + 1);
    parts[static_cast<size_t>(random.between(0, k - 1))] += share;
    left -= share;
  }
  parts[static_cast<size_t>(random.between(0, k - 1))] += left;
  coded.frequencies = parts;
  const int64_t count = random.size(5000) - 1;
  const bool by_frequency = !random.one_in(4);  // or each as often, however rare it should be
  for (int64_t i = 0; i < count; ++i) {
    uint32_t symbol = 0, part = random.bits() % kWhole;
    if (by_frequency)
      while (part >= parts[symbol]) part -= parts[symbol++];
    else
      symbol = part % static_cast<uint32_t>(k);
    coded.symbols.push_back(symbol);
  }
  return coded;
}

// As docs/format.md says it, with a division.
void encode(Coded& coded) {
  uint64_t state = 0;
  for (size_t i = coded.symbols.size(); i-- > 0;) {
    uint64_t start = 0;
    for (uint32_t s = 0; s < coded.symbols[i]; ++s) start += coded.frequencies[s];
    const uint64_t frequency = coded.frequencies[coded.symbols[i]];
    if (state >> 40 >= frequency) {
      coded.words.push_back(static_cast<uint32_t>(state));
      state >>= 32;
    }
    state = (state / frequency << 24) + state % frequency + start;
  }
  coded.stream = {state, static_cast<int64_t>(coded.words.size())};
}

template <typename Symbol>
std::string check_as(const Coded& coded) {
  const auto count = static_cast<int64_t>(coded.symbols.size());
  Buffer<Symbol> symbols(count, 0, Symbol{0}), back(count, 0, Symbol{0});
  for (int64_t i = 0; i < count; ++i) symbols[i] = static_cast<Symbol>(coded.symbols[i]);
  Buffer<uint32_t> words(count + 1, 0, 0);
  vq::AnsStream stream{0, 0};
  if (!vq::ans_push(coded.table(), symbols.data(), count, words.data(), stream))
    return "symbols are refused";
  if (stream.state != coded.stream.state || stream.size != coded.stream.size ||
      !std::equal(coded.words.begin(), coded.words.end(), words.data()))
    return "the stream differs";
  // No word beyond those that are there.
  Buffer<uint32_t> exact(stream.size, 0, 0);
  std::copy_n(words.data(), stream.size, exact.data());
  vq::ans_pop(coded.table(), exact.data(), stream, back.data(), count);
  if (stream.state != 0 || stream.size != 0) return "something is left of the stream";
  for (int64_t i = 0; i < count; ++i)
    if (back[i] != symbols[i]) return "a symbol differs";
  // Damaged streams: any symbols below k, and no byte beyond the words.
  stream = {coded.stream.state ^ 0x1234'5678'9abcULL, exact.size()};
  for (int64_t i = 0; i < exact.size(); ++i) exact[i] = ~exact[i];
  vq::ans_pop(coded.table(), exact.data(), stream, back.data(), count);
  for (int64_t i = 0; i < count; ++i)
    if (back[i] >= coded.frequencies.size()) return "a symbol is not below k";
  if (coded.frequencies.size() < (size_t{1} << (8 * sizeof(Symbol) - 1)) && count > 0) {
    symbols[count / 2] = static_cast<Symbol>(coded.frequencies.size());
    if (vq::ans_push(coded.table(), symbols.data(), count, words.data(), stream))
      return "a symbol without a frequency is taken";
  }
  return "";
}

std::string check(const Coded& coded) {
  if (!coded.table().valid()) return "the frequencies are refused";
  for (const uint32_t wrong : {0u, coded.frequencies[0] + 1, kWhole}) {
    std::vector<uint32_t> others = coded.frequencies;
    others[0] = wrong;
    if (vq::AnsTable{others.data(), static_cast<int64_t>(others.size())}.valid())
      return "frequencies of another sum are taken";
  }
  return coded.width == 1   ? check_as<uint8_t>(coded)
         : coded.width == 2 ? check_as<uint16_t>(coded)
                            : check_as<uint32_t>(coded);
}

// A file of 64-bit little-endian numbers; both machines are little-endian.
struct File {
  File(const char* name, const char* mode) : file(std::fopen(name, mode)) {
    if (file == nullptr) std::perror(name), std::exit(2);
  }
  ~File() { std::fclose(file); }

  void write(uint64_t number) { std::fwrite(&number, sizeof number, 1, file); }
  void write(const std::vector<uint32_t>& numbers) {
    write(numbers.size());
    for (const uint32_t number : numbers) write(uint64_t{number});
  }
  bool read(uint64_t& number) { return std::fread(&number, sizeof number, 1, file) == 1; }
  std::vector<uint32_t> read() {
    uint64_t size = 0, number = 0;
    read(size);
    std::vector<uint32_t> numbers;
    for (uint64_t i = 0; i < size && read(number); ++i)
      numbers.push_back(static_cast<uint32_t>(number));
    return numbers;
  }

  std::FILE* file;
};

}  // namespace

int main(int count, char** arguments) {
  const bool writes = count > 2 && std::strcmp(arguments[1], "write") == 0;
  if (!writes && (count != 3 || std::strcmp(arguments[1], "read") != 0)) return 2;
  File file(arguments[2], writes ? "wb" : "rb");
  const int most = count > 3 ? std::atoi(arguments[3]) : 300;
  int number = 0, failures = 0;
  for (uint64_t width; writes ? number < most : file.read(width); ++number) {
    Coded coded;
    if (writes) {
      Random random(static_cast<uint64_t>(number));
      coded = random_symbols(random);
      encode(coded);
      file.write(static_cast<uint64_t>(coded.width));
      file.write(coded.frequencies);
      file.write(coded.symbols);
      file.write(coded.words);
      file.write(coded.stream.state);
    } else {
      coded.width = static_cast<int64_t>(width);
      coded.frequencies = file.read();
      coded.symbols = file.read();
      coded.words = file.read();
      coded.stream.size = static_cast<int64_t>(coded.words.size());
      file.read(coded.stream.state);
    }
    const std::string wrong = check(coded);
    if (wrong.empty()) continue;
    ++failures;
    std::printf("coder, problem %d: %s\n", number, wrong.c_str());
  }
  std::printf("%d streams %s, %d wrong\n", number, writes ? "written" : "read", failures);
  return failures == 0 && number > 0 ? 0 : 1;
}
