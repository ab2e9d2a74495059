// The same look-ups with tables of 8 bits, four times as many in a register.
//
// For a sample and some subspaces (a tile), table entries t become round(t / scale) + 128 with
// scale = max |t| / 127, so that each look-up is off by at most scale / 2.
#pragma once

#include <cmath>

#include "lookup_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kByteTables = 128;  // bytes of the tables of 8 subspaces
constexpr float kLargestByte = 127.0f, kMiddleByte = 128.0f;

// NaN where one of n values is NaN or infinite, otherwise 0.
inline float times_zero(const float* x, int64_t n) {
  Vec::F sum = Vec::zero();
  for (int64_t i = 0; i < n; i += Vec::kWidth) sum = Vec::fmadd(Vec::load(x + i), Vec::zero(), sum);
  return Vec::sum(sum);
}

// Bytes of one sample's tables: of each 8 subspaces the even ones, then the odd ones.
// Returns the scale.
inline float to_bytes(const float* tables, int64_t columns, uint8_t* bytes) {
  Vec::F largest = Vec::zero();
  for (int64_t i = 0; i < columns * kNibbles * kLanes; i += Vec::kWidth)
    largest = Vec::max_abs(largest, Vec::load(tables + i));
  // Bytes have no NaN: the scale carries it to the outputs.
  const float not_finite = times_zero(tables, columns * kNibbles * kLanes);
  if (std::isnan(not_finite)) {
    std::fill(bytes, bytes + columns * kByteTables, uint8_t{0});
    return not_finite;
  }
  const float top = Vec::max(largest);
  const Vec::F inverse = Vec::set1(top > 0 ? kLargestByte / top : 0);
  const Vec::F middle = Vec::set1(kMiddleByte);
  for (int64_t column = 0; column < columns; ++column, bytes += kByteTables) {
    const float* from = tables + column * kNibbles * kLanes;
    for (int odd = 0; odd < 2; ++odd) {
      // Registers of the four tables of this half, one table after another.
      const auto value = [&](int i) {
        const float* table = from + (2 * (i / kVectors) + odd) * kLanes;
        return Vec::fmadd(Vec::load(table + i % kVectors * Vec::kWidth), inverse, middle);
      };
      for (int i = 0; i < 4 * kVectors; i += 4)
        Vec::store_as_bytes(bytes + odd * 64 + i * Vec::kWidth, value(i), value(i + 1),
                            value(i + 2), value(i + 3));
    }
  }
  return top / kLargestByte;
}

// sums[sample][row block][16] += scale · (the bytes at the codes, less their middle).
template <int kBlocks, int kBatch>
inline void add_byte_lookups(const int32_t* codes, int64_t row_step, int64_t columns,
                             const uint8_t* tables, int64_t table_step, const float* scales,
                             float* sums, int64_t sum_step) {
  constexpr int kRows = kBlocks * kVectors;
  Vec::I total[kRows][kBatch];
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) total[r][b] = Vec::zero_int();
  for (int64_t column = 0; column < columns; ++column) {
    Vec::I code[kRows];
    for (int r = 0; r < kRows; ++r)
      code[r] = Vec::load_codes(codes + r / kVectors * row_step + column * kLanes +
                                r % kVectors * Vec::kWidth);
      // Not unrolled: compilers would spill sums.
#pragma GCC unroll 1
    for (int odd = 0; odd < 2; ++odd) {
      decltype(Vec::table_index(code[0])) index[kRows];
      for (int r = 0; r < kRows; ++r) {
        index[r] = Vec::table_index(code[r]);
        code[r] = Vec::next_nibble(code[r]);
      }
      for (int b = 0; b < kBatch; ++b) {
        const auto table =
            Vec::load_bytes(tables + b * table_step + column * kByteTables + odd * 64);
        for (int r = 0; r < kRows; ++r)
          total[r][b] = Vec::add_bytes(total[r][b], Vec::lookup64(table, index[r]));
      }
    }
  }
  const Vec::F offset = Vec::set1(-kMiddleByte * float(columns * kNibbles));
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBatch; ++b) {
      float* sum = sums + b * sum_step + r * Vec::kWidth;
      const Vec::F steps = Vec::add(Vec::to_float(total[r][b]), offset);
      Vec::store(sum, Vec::fmadd(steps, Vec::set1(scales[b]), Vec::load(sum)));
    }
  }
}

void lookup_nibbles_fast(const Linear& p, const Pool& pool) {
  const NibbleLayout layout(p.rows, p.subspaces, false);
  divide(pool, layout.row_blocks, p.batch, p.picoseconds, [&](const Part& part) {
    struct Floats;
    struct Bytes;
    struct Sums;
    constexpr int64_t tile = 128;  // subspaces with one scale; 2 kB of tables a sample
    const int64_t rows = (part.last - part.first) * kLanes;
    for (int64_t start = part.first_sample; start < part.last_sample; start += kBatchChunk) {
      const int64_t samples = std::min(kBatchChunk, part.last_sample - start);
      float* sums = scratch<Sums, float>(samples * rows);
      std::fill(sums, sums + samples * rows, 0.0f);
      constexpr int64_t step = tile / kNibbles * kByteTables;
      float* floats = scratch<Floats, float>(samples * tile * kLanes);
      uint8_t* bytes = scratch<Bytes, uint8_t>(samples * step);
      float scales[kBatchChunk];
      for (int64_t stage = 0; stage < p.books.stages; ++stage) {
        const int32_t* codes = static_cast<const int32_t*>(p.codes) + stage * layout.size();
        for (int64_t s = 0; s < p.subspaces; s += tile) {
          const int64_t last = std::min(s + tile, p.subspaces);
          const int64_t columns = div_up(last - s, kNibbles), wide = columns * kNibbles * kLanes;
          build_tables(p, stage, s, last, start, samples, floats, wide);
          for (int64_t b = 0; b < samples; ++b)
            scales[b] = to_bytes(floats + b * wide, columns, bytes + b * step);
          each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
            each_blocks<at_once.value>(part.first, part.last, [&](auto blocks, int64_t block) {
              add_byte_lookups<blocks.value, at_once.value>(
                  codes + block * layout.row_step() + s / kNibbles * kLanes, layout.row_step(),
                  columns, bytes + b * step, step, scales + b,
                  sums + b * rows + (block - part.first) * kLanes, rows);
            });
          });
        }
      }
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t block = part.first; block < part.last; ++block)
          finish(p, block, start + b, sums + b * rows + (block - part.first) * kLanes);
    }
  });
}

}  // namespace
}  // namespace vq
