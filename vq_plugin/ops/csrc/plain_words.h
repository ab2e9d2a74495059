// 64-bit words in plain C++, for instruction sets whose compilers need no help with them.
#pragma once

#include <cstdint>
#include <cstring>

namespace vq {
namespace {

struct PlainWords {
  struct Words {
    uint64_t v[8];
  };
  static Words load_words(const void* p) {
    Words words;
    std::memcpy(words.v, p, sizeof words.v);
    return words;
  }
  static void store_words(uint64_t* p, Words words) { std::memcpy(p, words.v, sizeof words.v); }
  static Words add_words(Words a, Words b) {
    for (int i = 0; i < 8; ++i) a.v[i] += b.v[i];
    return a;
  }
  // The lower halves of a ^ b times the upper ones.
  static Words mix_words(Words a, Words b) {
    for (int i = 0; i < 8; ++i) {
      const uint64_t word = a.v[i] ^ b.v[i];
      a.v[i] = (word & 0xffffffff) * (word >> 32);
    }
    return a;
  }
};

}  // namespace
}  // namespace vq
