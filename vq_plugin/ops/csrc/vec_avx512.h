// 16 floats a register. Needs AVX-512 F, BW, DQ, VL, VBMI and VNNI: Ice Lake, Zen 4 and later.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "sanitize.h"

namespace vq {
namespace {

struct Vec {
  static constexpr int kWidth = 16;
  static constexpr int kRowBlocks = 4;  // blocks of 16 rows that a kernel goes through side by side
  static constexpr int kSamples = 4;

  using F = __m512;
  using I = __m512i;
  using Index = __m512i;
  using Table = __m512;  // 16 floats to choose from

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F load_part(const float* p, int64_t n) {
    touch(p, n < kWidth ? n : kWidth);
    return _mm512_maskz_loadu_ps(mask(n), p);
  }
  static void store_part(float* p, int64_t n, F v) {
    touch(p, n < kWidth ? n : kWidth);
    _mm512_mask_storeu_ps(p, mask(n), v);
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  // a where x < y, otherwise b.
  static F select_less(F x, F y, F a, F b) {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), a);
  }
  static F fmadd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // Every other value of a and b.
  static F even(F a, F b) {
    return _mm512_permutex2var_ps(
        a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
  }
  static F odd(F a, F b) {
    return _mm512_permutex2var_ps(
        a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
  }
  static F fused(F a, F b, F c) { return fmadd(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F max_abs(F a, F b) { return _mm512_max_ps(a, _mm512_abs_ps(b)); }
  static float sum(F v) { return _mm512_reduce_add_ps(v); }
  static float max(F v) { return _mm512_reduce_max_ps(v); }
  static F round_half(F v) { return _mm512_cvtph_ps(_mm512_cvtps_ph(v, 0)); }
  static F round_bfloat(F v) {
    const I bits = _mm512_castps_si512(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const I cut = _mm512_and_si512(up, _mm512_set1_epi32(int(0xffff0000)));
    // A NaN stays as it is: adding may carry it over to zero.
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_blend_ps(nan, _mm512_castsi512_ps(cut), v);
  }

  // As PlainWords.
  using Words = I;
  static I load_words(const void* p) {
    return _mm512_loadu_si512(reinterpret_cast<const __m512i*>(p));
  }
  static void store_words(uint64_t* p, I words) {
    _mm512_storeu_si512(reinterpret_cast<__m512i*>(p), words);
  }
  static I add_words(I a, I b) { return _mm512_add_epi64(a, b); }
  static I mix_words(I a, I b) {
    const I words = _mm512_xor_si512(a, b);
    return _mm512_mul_epu32(words, _mm512_srli_epi64(words, 32));
  }

  static I load_codes(const int32_t* p) { return _mm512_loadu_si512(p); }
  template <int kNibble>
  static Index index(I codes) {
    return _mm512_srli_epi32(codes, 4 * kNibble);  // vpermps reads the lowest four bits alone
  }
  static I next_nibble(I codes) { return _mm512_srli_epi32(codes, 4); }
  static Table table(const float* p) { return load(p); }
  static F lookup(Table t, Index i) { return _mm512_permutexvar_ps(i, t); }
  // to[i] = the float at nibble i of a dword.
  static void lookup8(Table t, uint32_t nibbles, float* to) {
    const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(nibbles)),
                                            _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    _mm256_storeu_ps(
        to, _mm256_permutex2var_ps(_mm512_castps512_ps256(t), index, _mm512_extractf32x8_ps(t, 1)));
  }

  // Four bytes of every row.
  using Bytes = __m512i;
  static I zero_int() { return _mm512_setzero_si512(); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  // The even ones of every row's 8 nibbles, below what lookup16() does not read.
  static Bytes even_nibbles(I codes) { return codes; }
  static Bytes table16(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // vpermb reads six bits of an index: two of them choose among four times the same table.
  static Bytes lookup16(Bytes table, Bytes index) { return _mm512_permutexvar_epi8(index, table); }
  // Adds the products of every row's four bytes, of 7 bits, with the same four signed ones.
  static I dot_bytes(I sum, Bytes values, int32_t four) {
    return _mm512_dpbusd_epi32(sum, values, _mm512_set1_epi32(four));
  }
  // 16 floats, between -127 and 127, rounded to signed bytes: of each 8 the even ones, then the odd
  // ones. Adds them to `sum`, too.
  static void store_even_odd(int32_t* p, const F* v, I* sum) {
    const I whole = _mm512_cvtps_epi32(v[0]);
    *sum = _mm512_add_epi32(*sum, whole);
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), order));
  }
  static int32_t sum_int(I v) { return _mm512_reduce_add_epi32(v); }

  // 256 floats to choose from by bytes. Their own bytes stand in planes, where two look-ups of 128
  // bytes each serve 64 codes; two planes are enough for what is in half precision.
  struct Table256 {
    alignas(64) uint8_t planes[4][256];
    bool half;
  };
  static void load_table256(const float* from, bool half, Table256* to) {
    to->half = half;
    for (int c = 0; c < 256; ++c) {
      uint32_t bits;
      if (half)
        bits = static_cast<uint32_t>(_cvtss_sh(from[c], 0));
      else
        std::memcpy(&bits, from + c, 4);
      for (int plane = 0; plane < 4; ++plane)
        to->planes[plane][c] = static_cast<uint8_t>(bits >> (8 * plane));
    }
  }
  // to[i] = the float at codes[i] for n codes, with zeros up to a multiple of 16.
  static void lookup256(const Table256& table, const uint8_t* codes, int64_t n, float* to) {
    if (table.half)
      lookup256<2>(table, codes, n, to);
    else
      lookup256<4>(table, codes, n, to);
  }

 private:
  template <int kPlanes>
  static void lookup256(const Table256& table, const uint8_t* codes, int64_t n, float* to) {
    // Unpacking bytes of 16-byte lanes puts them in order if lanes hold these eighths.
    const I eighths = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    I quarter[kPlanes][4];
    for (int plane = 0; plane < kPlanes; ++plane)
      for (int i = 0; i < 4; ++i)
        quarter[plane][i] = _mm512_load_si512(table.planes[plane] + 64 * i);
    for (int64_t i = 0; i < n; i += 64) {
      const __mmask64 there = n - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (n - i)) - 1;
      const I code = _mm512_permutexvar_epi64(eighths, _mm512_maskz_loadu_epi8(there, codes + i));
      const __mmask64 upper = _mm512_movepi8_mask(code);
      I byte[kPlanes];
      for (int plane = 0; plane < kPlanes; ++plane) {
        const auto& q = quarter[plane];
        byte[plane] = _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(q[0], code, q[1]), upper,
                                           _mm512_permutex2var_epi8(q[2], code, q[3]));
      }
      F value[4];
      if constexpr (kPlanes == 2) {
        for (int half = 0; half < 2; ++half) {
          const I words = half ? _mm512_unpackhi_epi8(byte[0], byte[1])
                               : _mm512_unpacklo_epi8(byte[0], byte[1]);
          value[2 * half] = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
          value[2 * half + 1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
        }
      } else {
        // Dwords of 16-byte lanes: 4 floats of each lane; lanes of one eighth after another.
        for (int half = 0; half < 2; ++half) {
          const I low = half ? _mm512_unpackhi_epi8(byte[0], byte[1])
                             : _mm512_unpacklo_epi8(byte[0], byte[1]);
          const I high = half ? _mm512_unpackhi_epi8(byte[2], byte[3])
                              : _mm512_unpacklo_epi8(byte[2], byte[3]);
          const I first = _mm512_unpacklo_epi16(low, high),
                  second = _mm512_unpackhi_epi16(low, high);
          value[2 * half] = _mm512_castsi512_ps(_mm512_permutex2var_epi64(
              first, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second));
          value[2 * half + 1] = _mm512_castsi512_ps(_mm512_permutex2var_epi64(
              first, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), second));
        }
      }
      for (int v = 0; v < 4; ++v) {
        const auto here = static_cast<__mmask16>(there >> (16 * v));
        _mm512_storeu_ps(to + i + 16 * v, _mm512_maskz_mov_ps(here, value[v]));
      }
    }
  }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
};

}  // namespace
}  // namespace vq
