// 8 floats a register. Needs AVX2, FMA and F16C: Haswell, Zen and later.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "plain_bytes.h"
#include "sanitize.h"

namespace vq {
namespace {

struct Vec : PlainBytes {
  static constexpr int kWidth = 8;
  static constexpr int kRowBlocks = 1;
  static constexpr int kSamples = 4;

  using F = __m256;
  using I = __m256i;
  struct Index {
    I low;   // three bits for vpermps
    F high;  // the fourth, as a sign for vblendvps
  };
  struct Table {
    F low, high;
  };

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F load_part(const float* p, int64_t n) {
    touch(p, n < kWidth ? n : kWidth);
    return _mm256_maskload_ps(p, mask(n));
  }
  static void store_part(float* p, int64_t n, F v) {
    touch(p, n < kWidth ? n : kWidth);
    _mm256_maskstore_ps(p, mask(n), v);
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  // a where x < y, otherwise b.
  static F select_less(F x, F y, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
  }
  static F fmadd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // Every other value of a and b.
  static F even(F a, F b) { return in_order(_mm256_shuffle_ps(a, b, 0x88)); }
  static F odd(F a, F b) { return in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
  static F fused(F a, F b, F c) { return fmadd(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F max_abs(F a, F b) {
    return _mm256_max_ps(a, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), b));
  }
  static float max(F v) {
    const __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 t = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
  }
  static float sum(F v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static F round_half(F v) { return _mm256_cvtph_ps(_mm256_cvtps_ph(v, 0)); }
  static F round_bfloat(F v) {
    const I bits = _mm256_castps_si256(v);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const I cut = _mm256_and_si256(up, _mm256_set1_epi32(int(0xffff0000)));
    // A NaN stays as it is: adding may carry it over to zero.
    return _mm256_blendv_ps(_mm256_castsi256_ps(cut), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }

  // As PlainWords.
  using Words = I;
  static I load_words(const void* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_words(uint64_t* p, I words) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
  }
  static I add_words(I a, I b) { return _mm256_add_epi64(a, b); }
  static I mix_words(I a, I b) {
    const I words = _mm256_xor_si256(a, b);
    return _mm256_mul_epu32(words, _mm256_srli_epi64(words, 32));
  }

  static I load_codes(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <int kNibble>
  static Index index(I codes) {
    return {_mm256_srli_epi32(codes, 4 * kNibble),
            _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - 4 * kNibble))};
  }
  static I next_nibble(I codes) { return _mm256_srli_epi32(codes, 4); }
  static Table table(const float* p) { return {load(p), load(p + 8)}; }
  static F lookup(Table t, Index i) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, i.low),
                            _mm256_permutevar8x32_ps(t.high, i.low), i.high);
  }
  // to[i] = the float at nibble i of a dword.
  static void lookup8(Table t, uint32_t nibbles, float* to) {
    const I lanes = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const I codes = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(nibbles)), lanes);
    store(to, lookup(t, index<0>(codes)));
  }

  // Four bytes of every row.
  using Bytes = __m256i;
  static I zero_int() { return _mm256_setzero_si256(); }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  // The even ones of every row's 8 nibbles.
  static Bytes even_nibbles(I codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
  static Bytes table16(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Bytes lookup16(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }
  // Adds the products of every row's four bytes, of 7 bits, with the same four signed ones.
  static I dot_bytes(I sum, Bytes values, int32_t four) {
    const I pairs = _mm256_maddubs_epi16(values, _mm256_set1_epi32(four));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // 16 floats, between -127 and 127, rounded to signed bytes: of each 8 the even ones, then the odd
  // ones. Adds them to `sum`, too.
  static void store_even_odd(int32_t* p, const F* v, I* sum) {
    const I first = _mm256_cvtps_epi32(v[0]), second = _mm256_cvtps_epi32(v[1]);
    *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(first, second));
    const __m128i bytes = _mm_packs_epi16(
        _mm_packs_epi32(_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1)),
        _mm_packs_epi32(_mm256_castsi256_si128(second), _mm256_extracti128_si256(second, 1)));
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_shuffle_epi8(bytes, order));
  }
  static int32_t sum_int(I v) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
    int32_t r = 0;
    for (const int32_t lane : lanes) r += lane;
    return r;
  }

 private:
  static F in_order(F pairs) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8));
  }
  static I mask(int64_t n) {
    const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n < 8 ? n : 8)), lanes);
  }
};

}  // namespace
}  // namespace vq
