// Planes for vpshufb on 32 bytes: one subspace of 32 rows, whose table both halves hold, or a pair of
// subspaces of 16 rows, one in each half, where a row block is alone.
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
  static constexpr int kStrip = 8;             // row blocks that share the loads of a table
  static constexpr int kDecoded = 2;           // row blocks together
  static constexpr bool kSideBySide = true;    // tables of places: see place_tables.h
  static constexpr bool kInRegisters = false;  // codes of few samples are decoded there
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

  // As store_column() of 8 places side by side, entries[subspace][center][place]: at to[place] + at.
  // Adds what was added to each to its sum.
  template <int kBits>
  static void store_column_of_places(const float* entries, __m256 per_unit, const __m256* least,
                                     uint8_t* const* to, int64_t at, uint32_t* sums) {
    __m256i offsets[8], sum = load(sums);
    for (int s = 0; s < 8; ++s) {
      offsets[s] = kBits == 24 ? _mm256_set1_epi32(1 << (kBits - 1))
                               : _mm256_sub_epi32(_mm256_setzero_si256(),
                                                  _mm256_cvttps_epi32(least[s]));
      sum = _mm256_add_epi32(sum, offsets[s]);
    }
    store(sums, sum);
    for (int odd = 0; odd < 2; ++odd)
      for (int half = 0; half < 2; ++half) {
        const int s = 4 * half + odd;
        store_two_of_places<kBits>(entries + s * 16 * 8, per_unit, offsets + s, to,
                                   at + 64 * odd + 32 * half);
      }
  }

  // Of one row block: even bytes are of rows 0 to 3 and 8 to 11, odd ones of the others. Of two:
  // even bytes are of the first, rows 0 to 3 and 8 to 11 in one half, and odd ones of the second.
  // Words unpacked from those bytes' sums are rows in order: see join().
  template <int kBlocks>
  static void decode(const int32_t* codes, int64_t row_step, uint8_t* to) {
    const __m256i by_pair = _mm256_setr_epi8(            //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    if constexpr (kBlocks == 1) {
      const auto rows = [&](int64_t first) {
        const auto* four = reinterpret_cast<const __m128i*>(codes + first);
        const __m256i both = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128(four)), _mm_loadu_si128(four + 2), 1);
        return _mm256_shuffle_epi8(both, by_pair);
      };
      const __m256i even = rows(0), odd = rows(4);
      store_nibbles<64>(to, _mm256_permute4x64_epi64(_mm256_unpacklo_epi8(even, odd), 0xd8));
      store_nibbles<64>(to + 32, _mm256_permute4x64_epi64(_mm256_unpackhi_epi8(even, odd), 0xd8));
    } else {
      const auto rows = [&](int64_t first) {
        return _mm256_shuffle_epi8(load(codes + first), by_pair);
      };
      const __m256i a = rows(0), b = rows(row_step), c = rows(8), d = rows(row_step + 8);
      const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
      const __m256i low8 = _mm256_unpacklo_epi8(c, d), high8 = _mm256_unpackhi_epi8(c, d);
      store_nibbles<128>(to, _mm256_unpacklo_epi64(low, low8));
      store_nibbles<128>(to + 32, _mm256_unpackhi_epi64(low, low8));
      store_nibbles<128>(to + 64, _mm256_unpacklo_epi64(high, high8));
      store_nibbles<128>(to + 96, _mm256_unpackhi_epi64(high, high8));
    }
  }

  // A function of its own, whose instructions integration/benchmarks/instructions.py counts.
  template <int kBits, int kBlocks, int kAtOnce>
  static __attribute__((noinline)) void add(const uint8_t* indices, int64_t columns,
                                            const PlaneSample* sample, int64_t row) {
    static_assert(kAtOnce == 1);
    add_table<kBits, kBlocks>(indices, columns, sample->planes, sample->step, sample->offset,
                                 sample->sums + row);
  }

  // sums[i · sum_step + row + 16 · kBlocks rows] += what `count` places find at one position of a
  // convolution: place i in tables[sources[i]].
  template <int kBits, int kBlocks>
  static __attribute__((noinline)) void add_position(const uint8_t* indices, int64_t columns,
                                                     const PlaneTable* tables,
                                                     const int32_t* sources, int64_t count,
                                                     float* sums, int64_t sum_step) {
    for (int64_t i = 0; i < count; ++i, sums += sum_step) {
      const PlaneTable& table = tables[sources[i]];
      if (table.step != 0.0f)
        add_table<kBits, kBlocks>(indices, columns, table.planes, table.step, table.offset, sums);
    }
  }

 private:
  static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

  template <int kBlocks>
  static constexpr int kRegisters = kBlocks == 1 ? 1 : kBlocks / 2;

  // Even subspaces at `to`, odd ones kApart bytes behind.
  template <int kApart>
  static void store_nibbles(uint8_t* to, __m256i codes) {
    const __m256i nibble = _mm256_set1_epi8(15);
    store(to, _mm256_and_si256(codes, nibble));
    store(to + kApart, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
  }

  // Subspaces 0 and 2, of 8 places.
  template <int kBits>
  static void store_two_of_places(const float* entries, __m256 per_unit, const __m256i* offsets,
                                  uint8_t* const* to, int64_t at) {
    __m256i first[kPlanes<kBits>][4], second[kPlanes<kBits>][4];
    turn_table<kBits>(entries, per_unit, offsets[0], first);
    turn_table<kBits>(entries + 2 * 16 * 8, per_unit, offsets[2], second);
#pragma GCC unroll 4
    for (int plane = 0; plane < kPlanes<kBits>; ++plane, at += kPlaneBytes) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        store(to[k] + at, _mm256_permute2x128_si256(first[plane][k], second[plane][k], 0x20));
        store(to[4 + k] + at, _mm256_permute2x128_si256(first[plane][k], second[plane][k], 0x31));
      }
    }
  }

  // 16 entries of 8 places -> those of place k and, in the other half, of place 4 + k.
  template <int kBits>
  static inline __attribute__((always_inline)) void turn_table(const float* entries,
                                                               __m256 per_unit, __m256i offset,
                                                               __m256i (*to)[4]) {
    const __m256i by_place = _mm256_setr_epi8(             //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i dwords[kPlanes<kBits>][4];  // of four centers each, a place a dword
#pragma GCC unroll 4
    for (int four = 0; four < 4; ++four) {
      __m256i entry[4];
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c)
        entry[c] = _mm256_add_epi32(
            _mm256_cvtps_epi32(
                _mm256_mul_ps(_mm256_loadu_ps(entries + (4 * four + c) * 8), per_unit)),
            offset);
      const auto digits = [&](auto bits, auto count, int plane, __m256i a, __m256i b) {
        const __m256i digit = _mm256_set1_epi16((1 << bits.value) - 1);
        for (int i = 0; i < count.value; ++i) {
          const bool last = i == count.value - 1;
          dwords[plane + i][four] = _mm256_shuffle_epi8(
              _mm256_packus_epi16(last ? a : _mm256_and_si256(a, digit),
                                  last ? b : _mm256_and_si256(b, digit)),
              by_place);
          a = _mm256_srli_epi16(a, bits.value);
          b = _mm256_srli_epi16(b, bits.value);
        }
      };
      if constexpr (kBits == 24) {
        const std::integral_constant<int, 6> six;
        const std::integral_constant<int, 2> two;
        digits(six, two, 0, low_words(entry[0], entry[1]), low_words(entry[2], entry[3]));
        digits(six, two, 2, high_words(entry[0], entry[1]), high_words(entry[2], entry[3]));
      } else {
        digits(std::integral_constant<int, kDigit<kBits>>{},
               std::integral_constant<int, kPlanes<kBits>>{}, 0,
               _mm256_packus_epi32(entry[0], entry[1]), _mm256_packus_epi32(entry[2], entry[3]));
      }
    }
#pragma GCC unroll 4
    for (int plane = 0; plane < kPlanes<kBits>; ++plane) {
      const auto& d = dwords[plane];
      const __m256i a = _mm256_unpacklo_epi32(d[0], d[1]), b = _mm256_unpackhi_epi32(d[0], d[1]);
      const __m256i c = _mm256_unpacklo_epi32(d[2], d[3]), e = _mm256_unpackhi_epi32(d[2], d[3]);
      to[plane][0] = _mm256_unpacklo_epi64(a, c);
      to[plane][1] = _mm256_unpackhi_epi64(a, c);
      to[plane][2] = _mm256_unpacklo_epi64(b, e);
      to[plane][3] = _mm256_unpackhi_epi64(b, e);
    }
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

  // to[16 · kBlocks rows] += step · (what is found in one sample's planes, or place's).
  template <int kBits, int kBlocks>
  static inline __attribute__((always_inline)) void add_table(const uint8_t* indices,
                                                              int64_t columns,
                                                              const uint8_t* planes, float by,
                                                              uint32_t more, float* to) {
    constexpr int kCount = kRegisters<kBlocks>;
    __m256i words[kPlanes<kBits>][kCount], odds[kPlanes<kBits>][kCount];
#pragma GCC unroll 4
    for (int plane = 0; plane < kPlanes<kBits>; ++plane)
      sum_plane<kBits, kBlocks>(indices, columns, planes + plane * kPlaneBytes,
                                          words[plane], odds[plane]);
    const __m256i offset = _mm256_set1_epi32(static_cast<int32_t>(more));
    const __m256 step = _mm256_set1_ps(by);
    const auto put = [&](float* at, __m256i entries) {
      const __m256 whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(entries, offset));
      _mm256_storeu_ps(at, _mm256_fmadd_ps(whole, step, _mm256_loadu_ps(at)));
    };
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      __m256i even[kPlanes<kBits>], odd[kPlanes<kBits>];
#pragma GCC unroll 4
      for (int plane = 0; plane < kPlanes<kBits>; ++plane) {
        odd[plane] = odds[plane][i];
        even[plane] = _mm256_sub_epi16(words[plane][i], _mm256_slli_epi16(odd[plane], 8));
        if constexpr (kBlocks == 1)  // both halves together
          even[plane] =
              _mm256_add_epi16(_mm256_permute2x128_si256(even[plane], odd[plane], 0x20),
                               _mm256_permute2x128_si256(even[plane], odd[plane], 0x31));
      }
      for (const __m256i* sums : {even, odd}) {
        const Joined sum = join<kBits>(sums);
        put(to, sum.low);
        put(to + 8, sum.high);
        to += 16;
        if (kBlocks == 1) break;
      }
    }
  }

  // One plane of every block: 16-bit sums of even bytes with 256 times the odd ones', and of the odd
  // ones'.
  template <int kBits, int kBlocks>
  static inline __attribute__((always_inline)) void sum_plane(const uint8_t* indices,
                                                              int64_t columns,
                                                              const uint8_t* table, __m256i* words,
                                                              __m256i* odds) {
    constexpr int kCount = kRegisters<kBlocks>;
    __m256i word[kCount], odd[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) word[i] = odd[i] = _mm256_setzero_si256();
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
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      words[i] = word[i];
      odds[i] = odd[i];
    }
  }

  template <int kBits, int kBlocks, int kColumns>
  static inline __attribute__((always_inline)) void add_columns(const uint8_t* indices,
                                                                const uint8_t* table,
                                                                __m256i* word, __m256i* odd) {
    // Registers of a column that one row block, or two, look up in; groups of them are of subspaces
    // 0 and 1, 2 and 3, ..., or of 0, 1, 4, 5 and of the others.
    constexpr int kParts = kBlocks == 1 ? 4 : 8, kOfColumn = kTogether<kBits> == 2 ? 2 : 4;
    constexpr int kGroups = kParts / kOfColumn, kCount = kRegisters<kBlocks>;
#pragma GCC unroll 4
    for (int group = 0; group < kGroups; ++group) {
      __m256i sum[kCount];
#pragma GCC unroll 8
      for (int i = 0; i < kOfColumn * kColumns; ++i) {
        const int column = i / kOfColumn, part = group + kGroups * (i % kOfColumn);
        const __m256i entries =
            table_of<kBlocks == 1>(table + column * kColumnBytes<kBits>, part);
#pragma GCC unroll 4
        for (int b = 0; b < kCount; ++b) {
          const __m256i found = _mm256_shuffle_epi8(
              entries, load(indices + (column * kCount + b) * 32 * kParts + 32 * part));
          sum[b] = i == 0 ? found : _mm256_add_epi8(sum[b], found);
        }
        in_order<kCount>(sum);
      }
#pragma GCC unroll 4
      for (int b = 0; b < kCount; ++b) {
        word[b] = _mm256_add_epi16(word[b], sum[b]);
        odd[b] = _mm256_add_epi16(odd[b], _mm256_srli_epi16(sum[b], 8));
      }
      if constexpr (kGroups > 1) {
        in_order<kCount>(word);
        in_order<kCount>(odd);
      }
    }
  }

  // Two tables, or one in both halves.
  template <bool kTwo>
  static __m256i table_of(const uint8_t* tables, int part) {
    if constexpr (kTwo) return load(tables + 32 * part);
    return _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(tables + 16 * part)));
  }

  // One table after another: compilers would load several, add in pairs and run out of registers.
  template <int kBlocks>
  static inline __attribute__((always_inline)) void in_order(__m256i* sum) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      asm volatile("" : "+x"(sum[b]));
    }
  }

  struct Joined {
    __m256i low, high;  // rows 0 to 7, 8 to 15
  };

  // first · by + second · by_second.
  static Joined weigh(__m256i first, __m256i second, int32_t by, int32_t by_second) {
    const __m256i weights = _mm256_set1_epi32(by | by_second << 16);
    return {_mm256_madd_epi16(_mm256_unpacklo_epi16(first, second), weights),
            _mm256_madd_epi16(_mm256_unpackhi_epi16(first, second), weights)};
  }

  // The planes' sums, each below 2^15 where there are several, as one.
  template <int kBits>
  static Joined join(const __m256i* sums) {
    const __m256i zero = _mm256_setzero_si256();
    if constexpr (kBits == 8) {
      return {_mm256_unpacklo_epi16(sums[0], zero), _mm256_unpackhi_epi16(sums[0], zero)};
    } else {
      const Joined lower = weigh(sums[0], sums[1], 1, 1 << kDigit<kBits>);
      Joined upper;
      if constexpr (kBits == 16) {
        upper = weigh(sums[2], zero, 1 << 10, 0);
      } else {
        upper = weigh(sums[2], sums[3], 1, 1 << 6);
        upper = {_mm256_slli_epi32(upper.low, 12), _mm256_slli_epi32(upper.high, 12)};
      }
      return {_mm256_add_epi32(lower.low, upper.low), _mm256_add_epi32(lower.high, upper.high)};
    }
  }
};

}  // namespace
}  // namespace vq
