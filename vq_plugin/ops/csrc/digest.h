// What tells whether memory has been written to: it is read once, where a comparison with a copy
// reads twice as much.
#pragma once

#include "common.h"

namespace vq {
namespace {

// Of any bytes, into kDigest words. Each 64 bits are mixed with a key that no other place has, and
// added to one of the words: a write is missed with a chance of about one in 2^64.
void digest(const void* from, size_t bytes, uint64_t* to) {
  constexpr int kWords = sizeof(Vec::Words) / sizeof(uint64_t);
  constexpr int kRegisters = kDigest / kWords;
  // Digits of the golden ratio, and odd multiples of them.
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
  alignas(64) uint64_t keys[kDigest], steps[kDigest];
  for (uint64_t i = 0; i < kDigest; ++i) {
    keys[i] = (2 * i + 1) * kGolden;
    steps[i] = 2 * kDigest * kGolden;
  }
  const Vec::Words step = Vec::load_words(steps);
  Vec::Words key[kRegisters], sums[kRegisters];
  for (int r = 0; r < kRegisters; ++r) sums[r] = key[r] = Vec::load_words(keys + r * kWords);
  const auto add = [&](const unsigned char* at) {
    for (int r = 0; r < kRegisters; ++r) {
      const Vec::Words some = Vec::load_words(at + r * sizeof(Vec::Words));
      sums[r] = Vec::add_words(Vec::add_words(sums[r], some), Vec::mix_words(some, key[r]));
      key[r] = Vec::add_words(key[r], step);
    }
  };
  constexpr size_t kTogether = kDigest * sizeof(uint64_t);
  const auto* at = static_cast<const unsigned char*>(from);
  for (; bytes >= kTogether; bytes -= kTogether, at += kTogether) add(at);
  alignas(64) uint64_t rest[kDigest] = {};
  std::memcpy(rest, at, bytes);
  add(reinterpret_cast<const unsigned char*>(rest));
  for (int r = 0; r < kRegisters; ++r) Vec::store_words(to + r * kWords, sums[r]);
}

}  // namespace
}  // namespace vq
