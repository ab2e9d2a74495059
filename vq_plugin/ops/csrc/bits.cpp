#include "bits.h"

#include <algorithm>
#include <cstring>

namespace vq {
namespace {

// Eight codes of kBits fill kBits bytes.
constexpr int64_t kGroup = 8;

// Little-endian whatever the machine is.
template <int kBits>
uint64_t load_bytes(const uint8_t* from) {
  uint64_t word = 0;
  for (int b = 0; b < kBits; ++b) word |= uint64_t{from[b]} << (8 * b);
  return word;
}

template <int kBits>
void store_bytes(uint64_t word, uint8_t* to) {
  for (int b = 0; b < kBits; ++b) to[b] = static_cast<uint8_t>(word >> (8 * b));
}

template <int kBits>
void pack_group(const uint8_t* codes, uint8_t* packed) {
  constexpr uint64_t mask = (1u << kBits) - 1;
  uint64_t word = 0;
  for (int i = 0; i < kGroup; ++i) word |= (codes[i] & mask) << (kBits * i);
  store_bytes<kBits>(word, packed);
}

template <int kBits>
void unpack_group(const uint8_t* packed, uint8_t* codes) {
  constexpr uint64_t mask = (1u << kBits) - 1;
  const uint64_t word = load_bytes<kBits>(packed);
  for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<uint8_t>(word >> (kBits * i) & mask);
}

template <int kBits>
void pack_all(const uint8_t* codes, int64_t count, uint8_t* packed) {
  const int64_t groups = count / kGroup, rest = count % kGroup;
  for (int64_t g = 0; g < groups; ++g) pack_group<kBits>(codes + g * kGroup, packed + g * kBits);
  if (rest == 0) return;
  uint8_t last[kGroup] = {}, bytes[kBits];
  std::copy_n(codes + groups * kGroup, rest, last);
  pack_group<kBits>(last, bytes);
  std::copy_n(bytes, bytes_of(rest, kBits), packed + groups * kBits);
}

template <int kBits>
void unpack_all(const uint8_t* packed, int64_t count, uint8_t* codes) {
  const int64_t groups = count / kGroup, rest = count % kGroup;
  for (int64_t g = 0; g < groups; ++g) unpack_group<kBits>(packed + g * kBits, codes + g * kGroup);
  if (rest == 0) return;
  uint8_t last[kGroup], bytes[kBits] = {};
  std::copy_n(packed + groups * kBits, bytes_of(rest, kBits), bytes);
  unpack_group<kBits>(bytes, last);
  std::copy_n(last, rest, codes + groups * kGroup);
}

}  // namespace

void pack_bits(const uint8_t* codes, int64_t count, int64_t bits, uint8_t* packed) {
  constexpr void (*kPack[])(const uint8_t*, int64_t, uint8_t*) = {
      pack_all<1>, pack_all<2>, pack_all<3>, pack_all<4>,
      pack_all<5>, pack_all<6>, pack_all<7>, pack_all<8>};
  kPack[bits - 1](codes, count, packed);
}

void unpack_bits(const uint8_t* packed, int64_t count, int64_t bits, uint8_t* codes) {
  constexpr void (*kUnpack[])(const uint8_t*, int64_t, uint8_t*) = {
      unpack_all<1>, unpack_all<2>, unpack_all<3>, unpack_all<4>,
      unpack_all<5>, unpack_all<6>, unpack_all<7>, unpack_all<8>};
  kUnpack[bits - 1](packed, count, codes);
}

}  // namespace vq
