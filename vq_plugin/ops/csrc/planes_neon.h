// Planes for tbl on 16 bytes: a pair of subspaces of 16 rows.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "plane_sample.h"

namespace vq {
namespace {

struct Planes : PlaceByPlace<Planes> {
  static constexpr int kStrip = 2;
  static constexpr int kDecoded = 1;  // row blocks together
  static constexpr bool kSideBySide = false;  // tables of places, one by one
  static constexpr bool kInRegisters = false;  // codes of few samples are decoded there
  template <int kBits>
  static constexpr int kSamples = 1;

  template <int kBits>
  static constexpr int kPlanes = kBits / 8;
  template <int kBits>
  static constexpr int64_t kColumnBytes = kPlanes<kBits>* kPlaneBytes;

  template <int kBits>
  static void store_column(const float* tables, float per_unit, const int32_t* offsets,
                           uint8_t* to) {
    for (int s = 0; s < 8; ++s)
      store_one<kBits>(tables + 16 * s, per_unit, offsets[s], to + 64 * (s % 2) + 16 * (s / 2));
  }

  template <int>
  static void decode(const int32_t* codes, int64_t, uint8_t* to) {
    const uint8x16x4_t pairs = vld4q_u8(reinterpret_cast<const uint8_t*>(codes));
    const uint8x16_t nibble = vdupq_n_u8(15);
    for (int i = 0; i < 4; ++i) {
      vst1q_u8(to + 16 * i, vandq_u8(pairs.val[i], nibble));
      vst1q_u8(to + 64 + 16 * i, vshrq_n_u8(pairs.val[i], 4));
    }
  }

  // A function of its own, whose instructions integration/benchmarks/instructions.py counts.
  template <int kBits, int kBlocks, int kAtOnce>
  static __attribute__((noinline)) void add(const uint8_t* indices, int64_t columns,
                                            const PlaneSample* sample, int64_t row) {
    static_assert(kAtOnce == 1);
    constexpr int kCount = kPlanes<kBits>;
    uint16x8_t low[kCount][kBlocks], high[kCount][kBlocks];  // rows 0 to 7, 8 to 15
    for (int plane = 0; plane < kCount; ++plane)
      sum_plane<kBits, kBlocks>(indices, columns, sample->planes + plane * kPlaneBytes, low[plane],
                                high[plane]);
    const uint32x4_t offset = vdupq_n_u32(sample->offset);
    const float32x4_t step = vdupq_n_f32(sample->step);
    for (int b = 0; b < kBlocks; ++b) {
      uint32x4_t sum[4];
      for (uint32x4_t& s : sum) s = vsubq_u32(vdupq_n_u32(0), offset);
      for (int plane = 0; plane < kCount; ++plane) {
        const int32x4_t place = vdupq_n_s32(8 * plane);
        const uint32x4_t part[4] = {
            vmovl_u16(vget_low_u16(low[plane][b])), vmovl_high_u16(low[plane][b]),
            vmovl_u16(vget_low_u16(high[plane][b])), vmovl_high_u16(high[plane][b])};
        for (int i = 0; i < 4; ++i) sum[i] = vaddq_u32(sum[i], vshlq_u32(part[i], place));
      }
      float* to = sample->sums + row + 16 * b;
      for (int i = 0; i < 4; ++i, to += 4)
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(vreinterpretq_s32_u32(sum[i])), step));
    }
  }

 private:
  template <int kBits>
  static void store_one(const float* table, float per_unit, int32_t more, uint8_t* to) {
    const float32x4_t times = vdupq_n_f32(per_unit);
    const int32x4_t offset = vdupq_n_s32(more);
    uint32x4_t entry[4];
    for (int i = 0; i < 4; ++i)
      entry[i] = vreinterpretq_u32_s32(
          vaddq_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(table + 4 * i), times)), offset));
    for (int plane = 0; plane < kPlanes<kBits>; ++plane, to += kPlaneBytes) {
      const uint16x8_t first = vcombine_u16(vmovn_u32(entry[0]), vmovn_u32(entry[1]));
      const uint16x8_t second = vcombine_u16(vmovn_u32(entry[2]), vmovn_u32(entry[3]));
      const uint8x16_t bytes = vcombine_u8(vmovn_u16(first), vmovn_u16(second));
      vst1q_u8(to, bytes);
      for (uint32x4_t& e : entry) e = vshrq_n_u32(e, 8);
    }
  }

  template <int kBits, int kBlocks>
  static inline __attribute__((always_inline)) void sum_plane(const uint8_t* indices,
                                                              int64_t columns,
                                                              const uint8_t* table,
                                                              uint16x8_t* lows,
                                                              uint16x8_t* highs) {
    uint16x8_t low[kBlocks], high[kBlocks];
    for (int b = 0; b < kBlocks; ++b) low[b] = high[b] = vdupq_n_u16(0);
    for (int64_t c = 0; c < columns; ++c, table += kColumnBytes<kBits>) {
      const uint8x16x4_t even = vld1q_u8_x4(table), odd = vld1q_u8_x4(table + 64);
      for (int b = 0; b < kBlocks; ++b, indices += kIndexBytes) {
        for (int pair = 0; pair < 4; ++pair) {
          const uint8x16_t r = vqtbl1q_u8(even.val[pair], vld1q_u8(indices + 16 * pair));
          const uint8x16_t q = vqtbl1q_u8(odd.val[pair], vld1q_u8(indices + 64 + 16 * pair));
          if constexpr (kBits == 8) {  // no more than a byte together
            widen(vaddq_u8(r, q), &low[b], &high[b]);
          } else {
            widen(r, &low[b], &high[b]);
            widen(q, &low[b], &high[b]);
          }
        }
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      lows[b] = low[b];
      highs[b] = high[b];
    }
  }

  static void widen(uint8x16_t bytes, uint16x8_t* low, uint16x8_t* high) {
    *low = vaddw_u8(*low, vget_low_u8(bytes));
    *high = vaddw_high_u8(*high, bytes);
  }
};

}  // namespace
}  // namespace vq
