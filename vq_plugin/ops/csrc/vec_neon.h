// 4 floats a register. Every 64-bit Arm processor has what this needs.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "plain_bytes.h"
#include "plain_words.h"

namespace vq {
namespace {

struct Vec : PlainBytes, PlainWords {
  static constexpr int kWidth = 4;
  static constexpr int kRowBlocks = 1;
  static constexpr int kSamples = 2;

  using F = float32x4_t;
  using I = uint32x4_t;
  using Index = uint8x16_t;  // of bytes in a table of 16 floats
  using Table = uint8x16x4_t;

  static F zero() { return vdupq_n_f32(0); }
  static F set1(float v) { return vdupq_n_f32(v); }
  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static F load_part(const float* p, int64_t n) {
    float part[4] = {};
    for (int64_t i = 0; i < n && i < 4; ++i) part[i] = p[i];
    return load(part);
  }
  static void store_part(float* p, int64_t n, F v) {
    float part[4];
    store(part, v);
    for (int64_t i = 0; i < n && i < 4; ++i) p[i] = part[i];
  }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  // a where x < y, otherwise b.
  static F select_less(F x, F y, F a, F b) { return vbslq_f32(vcltq_f32(x, y), a, b); }
  static F fmadd(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // Every other value of a and b.
  static F even(F a, F b) { return vuzp1q_f32(a, b); }
  static F odd(F a, F b) { return vuzp2q_f32(a, b); }
  static F fused(F a, F b, F c) { return fmadd(a, b, c); }
  static F min(F a, F b) { return vminq_f32(a, b); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F max_abs(F a, F b) { return vmaxq_f32(a, vabsq_f32(b)); }
  static float max(F v) { return vmaxvq_f32(v); }
  static float sum(F v) { return vaddvq_f32(v); }
  static F round_half(F v) { return vcvt_f32_f16(vcvt_f16_f32(v)); }
  static F round_bfloat(F v) {
    const I bits = vreinterpretq_u32_f32(v);
    const I odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const I up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const I cut = vandq_u32(up, vdupq_n_u32(0xffff0000));
    // A NaN stays as it is: adding may carry it over to zero.
    return vbslq_f32(vceqq_f32(v, v), vreinterpretq_f32_u32(cut), v);
  }

  static I load_codes(const int32_t* p) { return vreinterpretq_u32_s32(vld1q_s32(p)); }
  template <int kNibble>
  static Index index(I codes) {
    const I nibble = vandq_u32(vshlq_u32(codes, vdupq_n_s32(-4 * kNibble)), vdupq_n_u32(15));
    return vreinterpretq_u8_u32(
        vmlaq_u32(vdupq_n_u32(0x03020100), nibble, vdupq_n_u32(0x04040404)));
  }
  static I next_nibble(I codes) { return vshrq_n_u32(codes, 4); }
  static Table table(const float* p) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(p);
    return {vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)};
  }
  static F lookup(Table t, Index i) { return vreinterpretq_f32_u8(vqtbl4q_u8(t, i)); }
  // to[i] = the float at nibble i of a dword.
  static void lookup8(Table t, uint32_t nibbles, float* to) {
    const I low = vdupq_n_u32(nibbles), high = vdupq_n_u32(nibbles >> 16);
    const int32x4_t shifts = {0, -4, -8, -12};
    store(to, lookup(t, index<0>(vshlq_u32(low, shifts))));
    store(to + 4, lookup(t, index<0>(vshlq_u32(high, shifts))));
  }

  // Four bytes of every row.
  using Bytes = uint8x16_t;
  static I zero_int() { return vdupq_n_u32(0); }
  static F to_float(I v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
  // The even ones of every row's 8 nibbles.
  static Bytes even_nibbles(I codes) {
    return vandq_u8(vreinterpretq_u8_u32(codes), vdupq_n_u8(15));
  }
  static Bytes table16(const uint8_t* p) { return vld1q_u8(p); }
  static Bytes lookup16(Bytes table, Bytes index) { return vqtbl1q_u8(table, index); }
  // Adds the products of every row's four bytes, of 7 bits, with the same four signed ones.
  static I dot_bytes(I sum, Bytes values, int32_t four) {
    const int8x16_t a = vreinterpretq_s8_u8(values);
    const int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(four));
    const int16x8_t pairs =
        vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
    return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(sum), pairs));
  }
  // 16 floats, between -127 and 127, rounded to signed bytes: of each 8 the even ones, then the odd
  // ones. Adds them to `sum`, too.
  static void store_even_odd(int32_t* p, const F* v, I* sum) {
    int16x8_t words[2];
    for (int i = 0; i < 2; ++i) {
      const int32x4_t first = vcvtnq_s32_f32(v[2 * i]), second = vcvtnq_s32_f32(v[2 * i + 1]);
      *sum = vaddq_u32(*sum, vreinterpretq_u32_s32(vaddq_s32(first, second)));
      words[i] = vuzp1q_s16(vreinterpretq_s16_s32(first), vreinterpretq_s16_s32(second));
    }
    const int8x16_t bytes = vcombine_s8(vmovn_s16(words[0]), vmovn_s16(words[1]));
    const uint8x16_t order = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
    vst1q_s8(reinterpret_cast<int8_t*>(p), vqtbl1q_s8(bytes, order));
  }
  static int32_t sum_int(I v) { return static_cast<int32_t>(vaddvq_u32(v)); }
};

}  // namespace
}  // namespace vq
