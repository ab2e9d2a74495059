// Planes for vpshufb on 32 bytes: 16 rows of two pairs of subspaces, a pair in each half.
//
// Bytes are added before they are widened: those of two subspaces where an entry is one byte, of
// eight where it is digits of 5 bits (16 bits: three), of four where they are of 6 (24 bits: four).
// Widened sums are of 16 bits: one register sums whole words, even bytes plus 256 times the odd
// ones, and one the odd bytes, which are taken out of the first at the end.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "plane_sample.h"

namespace vq {
namespace {

struct Planes {
  static constexpr int kStrip = 4;    // row blocks that share the loads of a table
  static constexpr bool kSideBySide = false;  // tables of places, one by one
  template <int kBits>
  static constexpr int kSamples = 1;  // side by side

  template <int kBits>
  static constexpr int kDigit = kBits == 24 ? 6 : kBits == 16 ? 5 : 8;
  template <int kBits>
  static constexpr int kPlanes = kBits / kDigit<kBits>;
  template <int kBits>
  static constexpr int kTogether = kBits == 24 ? 4 : kBits == 16 ? 8 : 2;
  template <int kBits>
  static constexpr int64_t kColumnBytes = kPlanes<kBits>* kPlaneBytes;

  template <int kBits>
  static void store_column(const float* tables, float per_unit, const int32_t* offsets,
                           uint8_t* to) {
    for (int odd = 0; odd < 2; ++odd) {
      for (int half = 0; half < 2; ++half) {
        const int s = 4 * half + odd;
        store_two<kBits>(tables + s * 16, per_unit, offsets[s], offsets[s + 2],
                         to + 64 * odd + 32 * half);
      }
    }
  }

  // Bytes of rows 0, 8, 1, 9, ..., 7, 15: even ones and odd ones are in order.
  static void decode(const int32_t* codes, uint8_t* to) {
    const __m256i by_pair = _mm256_setr_epi8(            //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i low = _mm256_shuffle_epi8(load(codes), by_pair);
    const __m256i high = _mm256_shuffle_epi8(load(codes + 8), by_pair);
    store_nibbles(to, _mm256_permute4x64_epi64(_mm256_unpacklo_epi8(low, high), 0xd8));
    store_nibbles(to + 32, _mm256_permute4x64_epi64(_mm256_unpackhi_epi8(low, high), 0xd8));
  }

  // A function of its own, whose instructions integration/benchmarks/instructions.py counts.
  template <int kBits, int kBlocks, int kAtOnce>
  static __attribute__((noinline)) void add(const uint8_t* indices, int64_t segments,
                                            int64_t columns, const PlaneSample* sample, int64_t row) {
    static_assert(kAtOnce == 1);
    __m256i words[kPlanes<kBits>][kBlocks], odds[kPlanes<kBits>][kBlocks];
    for (int plane = 0; plane < kPlanes<kBits>; ++plane)
      sum_plane<kBits, kBlocks>(indices, segments, columns, sample->tables, plane, words[plane],
                                odds[plane]);
    const __m256i offset = _mm256_set1_epi32(static_cast<int32_t>(sample->offset));
    const __m256 step = _mm256_set1_ps(sample->step);
    for (int b = 0; b < kBlocks; ++b) {
      __m256i sums[kPlanes<kBits>];
      for (int plane = 0; plane < kPlanes<kBits>; ++plane)
        sums[plane] = rows(words[plane][b], odds[plane][b]);
      const Joined sum = join<kBits>(sums);
      float* to = sample->sums + row + 16 * b;
      const auto put = [&](float* at, __m256i entries) {
        const __m256 whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(entries, offset));
        _mm256_storeu_ps(at, _mm256_fmadd_ps(whole, step, _mm256_loadu_ps(at)));
      };
      put(to, sum.low);
      put(to + 8, sum.high);
    }
  }

 private:
  static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

  // Even subspaces of two pairs at `to`, odd ones 64 bytes behind.
  static void store_nibbles(uint8_t* to, __m256i codes) {
    const __m256i nibble = _mm256_set1_epi8(15);
    store(to, _mm256_and_si256(codes, nibble));
    store(to + 64, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
  }

  // Subspaces 0 and 2 of `tables`.
  template <int kBits>
  static void store_two(const float* tables, float per_unit, int32_t first_offset,
                        int32_t second_offset, uint8_t* to) {
    const __m256 times = _mm256_set1_ps(per_unit);
    const auto entries = [&](int i, __m256i offset) {
      return _mm256_add_epi32(
          _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(tables + i), times)), offset);
    };
    const __m256i first = _mm256_set1_epi32(first_offset);
    const __m256i second = _mm256_set1_epi32(second_offset);
    const __m256i a = entries(0, first), b = entries(8, first);
    const __m256i c = entries(32, second), d = entries(40, second);
    if constexpr (kBits == 24) {
      store_digits<6, 2>(to, low_words(a, b), low_words(c, d));
      store_digits<6, 2>(to + 2 * kPlaneBytes, high_words(a, b), high_words(c, d));
    } else {
      store_digits<kDigit<kBits>, kPlanes<kBits>>(to, _mm256_packus_epi32(a, b),
                                                  _mm256_packus_epi32(c, d));
    }
  }

  // The low 12 bits, and the others.
  static __m256i low_words(__m256i a, __m256i b) {
    const __m256i twelve = _mm256_set1_epi32(0xfff);
    return _mm256_packus_epi32(_mm256_and_si256(a, twelve), _mm256_and_si256(b, twelve));
  }
  static __m256i high_words(__m256i a, __m256i b) {
    return _mm256_packus_epi32(_mm256_srli_epi32(a, 12), _mm256_srli_epi32(b, 12));
  }

  // 16 words of each of two tables; what is above the other digits is the last one's.
  template <int kDigitBits, int kCount>
  static void store_digits(uint8_t* to, __m256i first, __m256i second) {
    // What packing twice leaves in each half: dwords of the first, then of the second.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i digit = _mm256_set1_epi16((1 << kDigitBits) - 1);
    for (int i = 0; i < kCount; ++i) {
      const bool last = i == kCount - 1;
      const __m256i a = last ? first : _mm256_and_si256(first, digit);
      const __m256i b = last ? second : _mm256_and_si256(second, digit);
      store(to + i * kPlaneBytes, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
      first = _mm256_srli_epi16(first, kDigitBits);
      second = _mm256_srli_epi16(second, kDigitBits);
    }
  }

  // One plane of every block: 16-bit sums of even rows' bytes with 256 times the odd ones', and of
  // the odd ones'.
  template <int kBits, int kBlocks>
  static inline __attribute__((always_inline)) void sum_plane(
      const uint8_t* indices, int64_t segments, int64_t columns, const uint8_t* const* tables,
      int plane, __m256i* words, __m256i* odds) {
    __m256i word[kBlocks], odd[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) word[b] = odd[b] = _mm256_setzero_si256();
    for (int64_t s = 0; s < segments; ++s) {
      const uint8_t* table = tables[s] + plane * kPlaneBytes;
      int64_t c = 0;
      if constexpr (kTogether<kBits> == 8)
        for (; c + 2 <= columns; c += 2) {
          add_columns<kBits, kBlocks, 2>(indices, table, word, odd);
          indices += 2 * kBlocks * kIndexBytes;
          table += 2 * kColumnBytes<kBits>;
        }
      for (; c < columns; ++c) {
        add_columns<kBits, kBlocks, 1>(indices, table, word, odd);
        indices += kBlocks * kIndexBytes;
        table += kColumnBytes<kBits>;
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      words[b] = word[b];
      odds[b] = odd[b];
    }
  }

  template <int kBits, int kBlocks, int kColumns>
  static inline __attribute__((always_inline)) void add_columns(const uint8_t* indices,
                                                                const uint8_t* table,
                                                                __m256i* word, __m256i* odd) {
    constexpr int kGroups = kTogether<kBits> == 2 ? 2 : 1;
#pragma GCC unroll 2
    for (int group = 0; group < kGroups; ++group) {
      __m256i sum[kBlocks];
#pragma GCC unroll 8
      for (int i = 0; i < 4 * kColumns / kGroups; ++i) {
        // Of one pair, or of all four halves of a column: even subspaces, odd ones.
        const int part = kGroups == 2 ? group + 2 * i : i % 4;
        const __m256i entries = load(table + i / 4 * kColumnBytes<kBits> + 32 * part);
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) {
          const __m256i found = _mm256_shuffle_epi8(
              entries, load(indices + (i / 4 * kBlocks + b) * kIndexBytes + 32 * part));
          sum[b] = i == 0 ? found : _mm256_add_epi8(sum[b], found);
        }
        in_order<kBlocks>(sum);
      }
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        word[b] = _mm256_add_epi16(word[b], sum[b]);
        odd[b] = _mm256_add_epi16(odd[b], _mm256_srli_epi16(sum[b], 8));
      }
      if constexpr (kGroups == 2) {
        in_order<kBlocks>(word);
        in_order<kBlocks>(odd);
      }
    }
  }

  // One table after another: compilers would load several, add in pairs and run out of registers.
  template <int kBlocks>
  static inline __attribute__((always_inline)) void in_order(__m256i* sum) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      __m256i here = sum[b];
      asm volatile("" : "+x"(here));
      sum[b] = here;
    }
  }

  // Sums of rows 0 to 7, then 8 to 15.
  static __m256i rows(__m256i word, __m256i odd) {
    const __m256i even = _mm256_sub_epi16(word, _mm256_slli_epi16(odd, 8));
    return _mm256_add_epi16(_mm256_permute2x128_si256(even, odd, 0x20),
                            _mm256_permute2x128_si256(even, odd, 0x31));
  }

  struct Joined {
    __m256i low, high;  // rows 0 to 7, 8 to 15
  };

  // first · by + second · by_second: of rows 0 to 3 and 8 to 11, and of the others.
  static Joined weigh(__m256i first, __m256i second, int32_t by, int32_t by_second) {
    const __m256i weights = _mm256_set1_epi32(by | by_second << 16);
    return {_mm256_madd_epi16(_mm256_unpacklo_epi16(first, second), weights),
            _mm256_madd_epi16(_mm256_unpackhi_epi16(first, second), weights)};
  }

  // The planes' sums, each below 2^15, as one.
  template <int kBits>
  static Joined join(const __m256i* sums) {
    if constexpr (kBits == 8) {
      return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(sums[0])),
              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(sums[0], 1))};
    } else {
      const Joined lower = weigh(sums[0], sums[1], 1, 1 << kDigit<kBits>);
      Joined upper;
      if constexpr (kBits == 16) {
        upper = weigh(sums[2], _mm256_setzero_si256(), 1 << 10, 0);
      } else {
        upper = weigh(sums[2], sums[3], 1, 1 << 6);
        upper = {_mm256_slli_epi32(upper.low, 12), _mm256_slli_epi32(upper.high, 12)};
      }
      const __m256i some = _mm256_add_epi32(lower.low, upper.low);
      const __m256i others = _mm256_add_epi32(lower.high, upper.high);
      return {_mm256_permute2x128_si256(some, others, 0x20),
              _mm256_permute2x128_si256(some, others, 0x31)};
    }
  }
};

}  // namespace
}  // namespace vq
