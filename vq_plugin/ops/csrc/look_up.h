// Rows of a table that is codes into codebooks: what an embedding looks up. Of all other rows no
// code is read.
#pragma once

#include <cstring>

#include "common.h"

namespace vq {
namespace {

// Eight codes of a nibble that start in the lower or upper half of a byte.
inline uint32_t eight_nibbles(const uint8_t* bytes, bool upper) {
  uint32_t eight;
  std::memcpy(&eight, bytes, sizeof eight);
  return upper ? eight >> 4 | static_cast<uint32_t>(bytes[4]) << 28 : eight;
}

inline uint8_t nibble(const uint8_t* codes, int64_t place) {
  return place % 2 == 0 ? codes[place / 2] & 15 : codes[place / 2] >> 4;
}

// Codes of a nibble from a place among all on, as bytes.
inline void unpack_row(const uint8_t* codes, int64_t place, int64_t n, uint8_t* to) {
  int64_t s = 0;
  for (; s + kNibbles <= n; s += kNibbles) {
    uint64_t eight = eight_nibbles(codes + (place + s) / 2, place % 2 == 1);
    eight = (eight | eight << 16) & 0x0000ffff0000ffff;
    eight = (eight | eight << 8) & 0x00ff00ff00ff00ff;
    eight = (eight | eight << 4) & 0x0f0f0f0f0f0f0f0f;
    std::memcpy(to + s, &eight, sizeof eight);
  }
  for (; s < n; ++s) to[s] = nibble(codes, place + s);
}

// Single values of one codebook.
inline void look_up_single(const uint8_t* codes, int64_t place, int64_t n, const float* sixteen,
                           float* to) {
  const auto centers = Vec::table(sixteen);
  int64_t s = 0;
  for (; s + kNibbles <= n; s += kNibbles)
    Vec::lookup8(centers, eight_nibbles(codes + (place + s) / 2, place % 2 == 1), to + s);
  for (; s < n; ++s) to[s] = sixteen[nibble(codes, place + s)];
}

// Centers of kDim values, or of `dim` where that is not known, until `values` are written.
template <int kDim>
inline void copy_row(const float* centers, int64_t apart, int64_t dim, const uint8_t* codes,
                     int64_t values, float* to) {
  const int64_t length = kDim > 0 ? kDim : dim;
  for (; values >= length; values -= length, centers += apart, to += length)
    std::copy_n(centers + *codes++ * length, length, to);
  if (values > 0) std::copy_n(centers + *codes * length, values, to);
}

// The values of one stage of a row.
inline void look_up_stage(const Table& t, int64_t place, const float* centers, uint8_t* codes,
                          float* to) {
  const bool single = t.dim == 1 && t.books == 1;
  if (single && t.nibbles) {
    float sixteen[kLanes];
    std::copy_n(centers, t.k, sixteen);
    std::fill(sixteen + t.k, sixteen + kLanes, centers[t.k - 1]);
    return look_up_single(t.codes, place, t.length, sixteen, to);
  }
  const uint8_t* found = t.nibbles ? codes : t.codes + place;
  if (t.nibbles) unpack_row(t.codes, place, t.subspaces, codes);
  if (t.k < (t.nibbles ? kLanes : kByteCenters)) {
    // A damaged code must not read beyond the codebook.
    const auto last = static_cast<uint8_t>(t.k - 1);
    for (int64_t s = 0; s < t.subspaces; ++s) codes[s] = std::min(found[s], last);
    found = codes;
  }
  const int64_t apart = t.books == 1 ? 0 : t.k * t.dim;
  const auto copy = t.dim == 1   ? copy_row<1>
                    : t.dim == 2 ? copy_row<2>
                    : t.dim == 4 ? copy_row<4>
                    : t.dim == 8 ? copy_row<8>
                                 : copy_row<0>;
  copy(centers, apart, t.dim, found, t.length, to);
}

void look_up(const Table& t, const int64_t* rows, int64_t count, float* to) {
  struct Codes;
  struct Summand;
  auto* codes = scratch<Codes, uint8_t>(t.subspaces);
  float* summand = t.stages > 1 ? scratch<Summand, float>(t.length) : nullptr;
  const int64_t book = t.books * t.k * t.dim;
  for (const int64_t* end = rows + count; rows < end; ++rows, to += t.length) {
    const int64_t group = t.groups == 1 ? 0 : *rows / t.group;
    for (int64_t stage = 0; stage < t.stages; ++stage) {
      const float* centers = t.codebooks + (stage * t.groups + group) * book;
      look_up_stage(t, (stage * t.rows + *rows) * t.row_step, centers, codes,
                    stage == 0 ? to : summand);
      if (stage > 0)
        for (int64_t i = 0; i < t.length; ++i) to[i] += summand[i];
    }
    if (t.scale == nullptr) continue;
    const float scale = t.scale[*rows];
    for (int64_t i = 0; i < t.length; ++i) to[i] *= scale;
  }
}

}  // namespace
}  // namespace vq
