// Planes for vpermb, which chooses among four tables of 16 bytes at once: a dword is four subspaces
// of one row, whose bytes vpdpbusd adds.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "plane_sample.h"
#include "turn_places_avx512.h"

namespace vq {
namespace {

struct Planes {
  static constexpr int kStrip = 4;  // row blocks side by side
  static constexpr int kDecoded = 1;  // row blocks together
  static constexpr bool kSideBySide = true;  // tables of places: see place_tables.h
  static constexpr bool kInRegisters = true;  // codes of few samples are decoded there
  template <int kBits>
  static constexpr int kSamples = kBits == 8 ? 4 : 2;  // side by side
  // Row blocks whose codes and sums of some samples registers hold.
  template <int kBits, int kAtOnce>
  static constexpr int kCodeBlocks = kBits == 24 && kAtOnce == 2 ? 2 : 4;

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

  // As store_column() of 16 places side by side, entries[subspace][center][place]: at to[place] + at.
  // Adds what was added to each to its sum.
  template <int kBits>
  static void store_column_of_places(const float* entries, __m512 per_unit, const __m512* least,
                                     uint8_t* const* to, int64_t at, uint32_t* sums) {
    __m512i offsets[8], sum = _mm512_loadu_si512(sums);
    for (int s = 0; s < 8; ++s) {
      offsets[s] = kBits == 24 ? _mm512_set1_epi32(1 << (kBits - 1))
                               : _mm512_sub_epi32(_mm512_setzero_si512(),
                                                  _mm512_cvttps_epi32(least[s]));
      sum = _mm512_add_epi32(sum, offsets[s]);
    }
    _mm512_storeu_si512(sums, sum);
    for (int odd = 0; odd < 2; ++odd)
      store_four_of_places<kBits>(entries + odd * 16 * 16, per_unit, offsets + odd, to,
                                  at + 64 * odd);
  }

  // Indices of the even subspaces, then of the odd ones.
  template <int>
  static void decode(const int32_t* codes, int64_t, uint8_t* to) {
    const __m512i here = _mm512_loadu_si512(codes);
    _mm512_storeu_si512(to, own_table(here, 0));
    _mm512_storeu_si512(to + 64, own_table(here, 1));
  }

  // A function of its own, whose instructions integration/benchmarks/instructions.py counts.
  template <int kBits, int kBlocks, int kAtOnce>
  static __attribute__((noinline)) void add(const uint8_t* indices, int64_t columns,
                                            const PlaneSample* samples, int64_t row) {
    // One sample alone sums even and odd subspaces apart, where they are not added as bytes: one sum
    // after another would wait.
    Totals<kBits, kBlocks, kAtOnce, kAtOnce == 1 && kBits != 8 ? 2 : 1> totals;
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i) totals.start(i, samples[i].planes, samples[i].offset);
    totals.look_up(columns, StoredIndices<kBlocks>{indices});
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i) totals.add_to(i, samples[i].step, samples[i].sums + row);
  }

  // As add(), codes as they are, (columns, 16) for every block `row_step` apart: for samples so few
  // that indices would be read once or twice.
  template <int kBits, int kBlocks, int kAtOnce>
  static __attribute__((noinline)) void add_codes(const int32_t* codes, int64_t row_step,
                                                  int64_t columns, const PlaneSample* samples,
                                                  int64_t row) {
    Totals<kBits, kBlocks, kAtOnce, 1> totals;
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i) totals.start(i, samples[i].planes, samples[i].offset);
    totals.look_up(columns, DecodedIndices<kBlocks>{codes, row_step});
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i) totals.add_to(i, samples[i].step, samples[i].sums + row);
  }

  // sums[i · sum_step + row + 16 · kBlocks rows] += what kAtOnce places find at some positions of a
  // convolution: position after position, in registers. Place i reads tables[sources[i]] at the
  // first position, and that of sources[source_step + i] at the next.
  template <int kBits, int kBlocks, int kAtOnce>
  static __attribute__((noinline)) void add_positions(const uint8_t* indices,
                                                      int64_t position_bytes, int64_t positions,
                                                      int64_t columns, const PlaneTable* tables,
                                                      const int32_t* sources, int64_t source_step,
                                                      float* sums, int64_t sum_step) {
    __m512 sum[kAtOnce][kBlocks];
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) sum[i][b] = _mm512_loadu_ps(sums + i * sum_step + 16 * b);
    for (int64_t p = 0; p < positions; ++p, indices += position_bytes, sources += source_step) {
      const PlaneTable* found[kAtOnce];
      Totals<kBits, kBlocks, kAtOnce, 1> totals;
#pragma GCC unroll 4
      for (int i = 0; i < kAtOnce; ++i) {
        found[i] = tables + sources[i];
        totals.start(i, found[i]->planes, found[i]->offset);
      }
      totals.look_up(columns, StoredIndices<kBlocks>{indices});
#pragma GCC unroll 4
      for (int i = 0; i < kAtOnce; ++i) {
        const __m512 step = _mm512_set1_ps(found[i]->step);
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b)
          sum[i][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals.of(i, b)), step, sum[i][b]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) _mm512_storeu_ps(sums + i * sum_step + 16 * b, sum[i][b]);
  }
  // Places whose sums registers hold.
  template <int kBits, int kBlocks>
  static constexpr int kPlacesAtOnce = kBlocks == 1 ? 4
                                       : kBits == 8 ? 2
                                                    : 1;

 private:
  // Indices that decode() stored, of a column and its even or odd subspaces.
  template <int kBlocks>
  struct StoredIndices {
    const uint8_t* at;

    inline __attribute__((always_inline)) void load(int odd, __m512i* index) const {
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b)
        index[b] = _mm512_loadu_si512(at + b * kIndexBytes + 64 * odd);
    }
    inline __attribute__((always_inline)) void step() { at += kBlocks * kIndexBytes; }
  };

  // The same of codes.
  template <int kBlocks>
  struct DecodedIndices {
    const int32_t* at;
    int64_t row_step;

    inline __attribute__((always_inline)) void load(int odd, __m512i* index) const {
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        const int32_t* here = at + b * row_step;
        if (odd == 0) __builtin_prefetch(here + kBlocks * row_step);  // as in decode_strip()
        index[b] = own_table(_mm512_loadu_si512(here), odd);
      }
    }
    inline __attribute__((always_inline)) void step() { at += 16; }
  };

  // Of dwords of codes the even or odd subspaces, each into its own table of four.
  static inline __attribute__((always_inline)) __m512i own_table(__m512i codes, int odd) {
    constexpr int kAndOr = 0xea;
    return _mm512_ternarylogic_epi32(odd != 0 ? _mm512_srli_epi32(codes, 4) : codes,
                                     _mm512_set1_epi8(15), _mm512_set1_epi32(0x30201000), kAndOr);
  }

  // Sums of entries, in registers: for each of kAtOnce samples, of kBlocks row blocks. Even and odd
  // subspaces are summed apart where there are two chains.
  template <int kBits, int kBlocks, int kAtOnce, int kChains>
  struct Totals {
    static constexpr int kCount = kPlanes<kBits>;
    __m512i total[kAtOnce][kCount][kBlocks][kChains];
    const uint8_t* table[kAtOnce];

    inline __attribute__((always_inline)) void start(int i, const uint8_t* planes,
                                                     uint32_t offset) {
      table[i] = planes;
#pragma GCC unroll 4
      for (int plane = 0; plane < kCount; ++plane)
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 2
          for (int chain = 0; chain < kChains; ++chain)
            total[i][plane][b][chain] =
                plane + chain == 0 ? _mm512_set1_epi32(static_cast<int32_t>(0 - offset))
                                   : _mm512_setzero_si512();
    }

    template <typename Indices>
    inline __attribute__((always_inline)) void look_up(int64_t columns, Indices indices) {
      for (int64_t c = 0; c < columns; ++c, indices.step()) {
        __m512i index[2][kBlocks];
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd) {
          indices.load(odd, index[odd]);
          if constexpr (kBits != 8) {
#pragma GCC unroll 4
            for (int i = 0; i < kAtOnce; ++i) look_up_half(i, odd, index[odd]);
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; ++i) {
          if constexpr (kBits == 8) look_up_pairs(i, index);
          table[i] += kColumnBytes<kBits>;
        }
      }
    }

    // The even or the odd subspaces of a column, each byte widened.
    inline __attribute__((always_inline)) void look_up_half(int i, int odd, const __m512i* index) {
#pragma GCC unroll 4
      for (int plane = 0; plane < kCount; ++plane) {
        const __m512i four = _mm512_loadu_si512(table[i] + plane * kPlaneBytes + 64 * odd);
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) {
          __m512i& sum = total[i][plane][b][odd % kChains];
          sum = _mm512_dpbusd_epi32(sum, _mm512_permutexvar_epi8(index[b], four),
                                    _mm512_set1_epi8(1));
          // One after another: compilers would load more first and run out of registers.
          asm volatile("" : "+v"(sum));
        }
      }
    }

    // Bytes of two neighbours, which add up to one (most_together()), are widened as one: widening
    // and looking up take turns at one of the processor's ports.
    inline __attribute__((always_inline)) void look_up_pairs(int i,
                                                             const __m512i (&index)[2][kBlocks]) {
      __m512i even = _mm512_loadu_si512(table[i]), odd = _mm512_loadu_si512(table[i] + 64);
      // In registers: compilers would read them from memory for every row block.
      asm("" : "+v"(even), "+v"(odd));
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i pairs = _mm512_add_epi8(_mm512_permutexvar_epi8(index[0][b], even),
                                              _mm512_permutexvar_epi8(index[1][b], odd));
        // The instruction itself, in this order: around the intrinsic, compilers copy sums.
        asm volatile("vpdpbusd %2, %1, %0"
                     : "+v"(total[i][0][b][0])
                     : "v"(pairs), "v"(_mm512_set1_epi8(1)));
      }
    }

    inline __attribute__((always_inline)) __m512i of(int i, int b) const {
      __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int plane = 0; plane < kCount; ++plane)
#pragma GCC unroll 2
        for (const __m512i part : total[i][plane][b])
          sum = _mm512_add_epi32(sum, _mm512_slli_epi32(part, static_cast<unsigned>(8 * plane)));
      return sum;
    }

    inline __attribute__((always_inline)) void add_to(int i, float by, float* to) const {
      const __m512 step = _mm512_set1_ps(by);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b, to += 16)
        _mm512_storeu_ps(
            to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(of(i, b)), step, _mm512_loadu_ps(to)));
    }
  };

  // Entries of every other of 8 subspaces, of 16 places.
  template <int kBits>
  static void store_four_of_places(const float* entries, __m512 per_unit, const __m512i* offsets,
                                   uint8_t* const* to, int64_t at) {
    __m512i tables[kPlanes<kBits>][4][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __m512i bytes[kPlanes<kBits>][4];
#pragma GCC unroll 4
      for (int four = 0; four < 4; ++four) {
        __m512i entry[4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c)
          entry[c] = _mm512_add_epi32(
              _mm512_cvtps_epi32(
                  _mm512_mul_ps(_mm512_loadu_ps(entries + (32 * i + 4 * four + c) * 16), per_unit)),
              offsets[2 * i]);
        join_centers<kBits>(entry, four, bytes);
      }
#pragma GCC unroll 3
      for (int plane = 0; plane < kPlanes<kBits>; ++plane)
        turn_dwords(bytes[plane], tables[plane][i]);
    }
#pragma GCC unroll 3
    for (int plane = 0; plane < kPlanes<kBits>; ++plane) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const auto& t = tables[plane];
        __m512i places[4];
        turn_quarters(t[0][k], t[1][k], t[2][k], t[3][k], places);
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter)
          _mm512_storeu_si512(to[4 * quarter + k] + at + plane * kPlaneBytes, places[quarter]);
      }
    }
  }

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
