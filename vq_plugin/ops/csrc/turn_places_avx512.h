// Steps from entries of 16 places side by side, a place a dword, to bytes of one place after
// another.
#pragma once

#include <immintrin.h>

namespace vq {
namespace {

// Four centers' entries of 16 places -> dword `four` of each plane.
template <int kBits>
inline __attribute__((always_inline)) void join_centers(const __m512i* entry, int four,
                                                        __m512i (*bytes)[4]) {
  constexpr int kSelect = 0xca;  // a ? b : c
  const __m512i word = _mm512_set1_epi32(0xffff), digit = _mm512_set1_epi16(0xff);
  const auto low_words = [&](__m512i a, __m512i b) {
    const __m512i high = _mm512_slli_epi32(b, 16);
    return kBits == 24 ? _mm512_ternarylogic_epi32(word, a, high, kSelect)
                       : _mm512_or_si512(a, high);
  };
  const __m512i even = low_words(entry[0], entry[2]), odd = low_words(entry[1], entry[3]);
  const __m512i up = _mm512_slli_epi32(odd, 8);
  if constexpr (kBits == 8) {
    bytes[0][four] = _mm512_or_si512(even, up);
  } else {
    bytes[0][four] = _mm512_ternarylogic_epi32(digit, even, up, kSelect);
    bytes[1][four] = _mm512_ternarylogic_epi32(digit, _mm512_srli_epi32(even, 8), odd, kSelect);
  }
  if constexpr (kBits == 24) {
    const auto high_words = [&](__m512i a, __m512i b) {
      return _mm512_ternarylogic_epi32(word, _mm512_srli_epi32(a, 16), b, kSelect);
    };
    bytes[2][four] = _mm512_or_si512(high_words(entry[0], entry[2]),
                                     _mm512_slli_epi32(high_words(entry[1], entry[3]), 8));
  }
}

// Dwords of 16 places, four registers -> 16 bytes of places k, 4 + k, 8 + k, 12 + k in register
// k.
inline __attribute__((always_inline)) void turn_dwords(const __m512i* from, __m512i* to) {
  const __m512i a = _mm512_unpacklo_epi32(from[0], from[1]);
  const __m512i b = _mm512_unpackhi_epi32(from[0], from[1]);
  const __m512i c = _mm512_unpacklo_epi32(from[2], from[3]);
  const __m512i d = _mm512_unpackhi_epi32(from[2], from[3]);
  to[0] = _mm512_unpacklo_epi64(a, c);
  to[1] = _mm512_unpackhi_epi64(a, c);
  to[2] = _mm512_unpacklo_epi64(b, d);
  to[3] = _mm512_unpackhi_epi64(b, d);
}

// Quarter q of each of four registers -> register q.
inline __attribute__((always_inline)) void turn_quarters(__m512i a, __m512i b, __m512i c, __m512i d,
                                                         __m512i* to) {
  const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44),
                ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44),
                cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
  to[0] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
  to[1] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
  to[2] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
  to[3] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
}

}  // namespace
}  // namespace vq
