// Planes for vpermb, which chooses among four tables of 16 bytes at once: a dword is four subspaces
// of one row, whose bytes vpdpbusd adds.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "plane_sample.h"

namespace vq {
namespace {

struct Planes {
  static constexpr int kStrip = 4;  // row blocks side by side
  template <int kBits>
  static constexpr int kSamples = kBits == 8 ? 4 : 2;  // side by side

  template <int kBits>
  static constexpr int kPlanes = kBits / 8;
  template <int kBits>
  static constexpr int64_t kColumnBytes = kPlanes<kBits>* kPlaneBytes;

  template <int kBits>
  static void store_column(const float* tables, float per_unit, const int32_t* offsets,
                           uint8_t* to) {
    store_four<kBits>(tables, per_unit, offsets, to);
    store_four<kBits>(tables + 16, per_unit, offsets + 1, to + 64);
  }

  // Indices of the even subspaces, then of the odd ones, each into its own table of four.
  static void decode(const int32_t* codes, uint8_t* to) {
    constexpr int kAndOr = 0xea;
    const __m512i nibble = _mm512_set1_epi8(15), own = _mm512_set1_epi32(0x30201000);
    const __m512i even = _mm512_loadu_si512(codes), odd = _mm512_srli_epi32(even, 4);
    _mm512_storeu_si512(to, _mm512_ternarylogic_epi32(even, nibble, own, kAndOr));
    _mm512_storeu_si512(to + 64, _mm512_ternarylogic_epi32(odd, nibble, own, kAndOr));
  }

  // A function of its own, whose instructions integration/benchmarks/instructions.py counts.
  template <int kBits, int kBlocks, int kAtOnce>
  static __attribute__((noinline)) void add(const uint8_t* indices, int64_t segments,
                                            int64_t columns, const PlaneSample* samples, int64_t row) {
    // One sample alone sums even and odd subspaces apart: one sum after another would wait.
    constexpr int kCount = kPlanes<kBits>, kChains = kAtOnce == 1 ? 2 : 1;
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i total[kAtOnce][kCount][kBlocks][kChains];
    for (auto& sample : total)
      for (auto& plane : sample)
        for (auto& block : plane)
          for (auto& sum : block) sum = _mm512_setzero_si512();
    for (int64_t s = 0; s < segments; ++s) {
      const uint8_t* table[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) table[i] = samples[i].tables[s];
      for (int64_t c = 0; c < columns; ++c) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd) {
          __m512i index[kBlocks];
#pragma GCC unroll 4
          for (int b = 0; b < kBlocks; ++b)
            index[b] = _mm512_loadu_si512(indices + b * kIndexBytes + 64 * odd);
#pragma GCC unroll 4
          for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 4
            for (int plane = 0; plane < kCount; ++plane) {
              const __m512i four = _mm512_loadu_si512(table[i] + plane * kPlaneBytes + 64 * odd);
#pragma GCC unroll 4
              for (int b = 0; b < kBlocks; ++b) {
                const int chain = odd % kChains;
                __m512i sum = _mm512_dpbusd_epi32(total[i][plane][b][chain],
                                                  _mm512_permutexvar_epi8(index[b], four), ones);
                // One after another: compilers would load more first and run out of registers.
                asm volatile("" : "+v"(sum));
                total[i][plane][b][chain] = sum;
              }
            }
          }
        }
        indices += kBlocks * kIndexBytes;
        for (int i = 0; i < kAtOnce; ++i) table[i] += kColumnBytes<kBits>;
      }
    }
    for (int i = 0; i < kAtOnce; ++i) {
      const __m512 step = _mm512_set1_ps(samples[i].step);
      const __m512i offset = _mm512_set1_epi32(static_cast<int32_t>(samples[i].offset));
      for (int b = 0; b < kBlocks; ++b) {
        __m512i sum = _mm512_sub_epi32(_mm512_setzero_si512(), offset);
        for (int plane = 0; plane < kCount; ++plane)
          for (const __m512i part : total[i][plane][b])
            sum = _mm512_add_epi32(sum, _mm512_slli_epi32(part, static_cast<unsigned>(8 * plane)));
        float* to = samples[i].sums + row + 16 * b;
        _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, _mm512_loadu_ps(to)));
      }
    }
  }

 private:
  // Entries of every other of 8 subspaces.
  template <int kBits>
  static void store_four(const float* tables, float per_unit, const int32_t* offsets,
                         uint8_t* to) {
    const __m512 times = _mm512_set1_ps(per_unit);
    __m512i entry[4];
    for (int i = 0; i < 4; ++i)
      entry[i] = _mm512_add_epi32(
          _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(tables + 32 * i), times)),
                                  _mm512_set1_epi32(offsets[2 * i]));
    if constexpr (kBits == 24) {
      const __m512i words = _mm512_set1_epi32(0xffff);
      __m512i low[4], high[4];
      for (int i = 0; i < 4; ++i) {
        low[i] = _mm512_and_si512(entry[i], words);
        high[i] = _mm512_srli_epi32(entry[i], 16);
      }
      store_digits<2>(to, low);
      store_digits<1>(to + 2 * kPlaneBytes, high);
    } else {
      store_digits<kPlanes<kBits>>(to, entry);
    }
  }

  // Four tables of 16 dwords, each below 2^16, as one or two planes.
  template <int kCount>
  static void store_digits(uint8_t* to, const __m512i* entry) {
    const __m512i first = _mm512_packus_epi32(entry[0], entry[1]);
    const __m512i second = _mm512_packus_epi32(entry[2], entry[3]);
    const auto put = [](uint8_t* at, __m512i a, __m512i b) {
      const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      _mm512_storeu_si512(at, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b)));
    };
    if constexpr (kCount == 1) {
      put(to, first, second);
    } else {
      const __m512i digit = _mm512_set1_epi16(255);
      put(to, _mm512_and_si512(first, digit), _mm512_and_si512(second, digit));
      put(to + kPlaneBytes, _mm512_srli_epi16(first, 8),
          _mm512_srli_epi16(second, 8));
    }
  }
};

}  // namespace
}  // namespace vq
