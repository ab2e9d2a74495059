// Single weights, up to 16 centers: weights are looked up in a register and multiplied at once.
#pragma once

#include "lookup_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kScalarTile = 1024;  // inputs whose values stay near

// Row blocks whose codes of one tile stay near while all samples go through them.
template <typename F>
inline void each_strip(const Part& part, F f) {
  constexpr int64_t kStrip = 16;
  for (int64_t block = part.first; block < part.last; block += kStrip)
    f(block, std::min(block + kStrip, part.last));
}

// x[input][sample] of some inputs, zeros beyond the last.
template <int kBatch>
inline void gather_inputs(const Linear& p, int64_t sample, int64_t first, int64_t columns,
                          float* to) {
  for (int64_t i = 0; i < columns * kNibbles; ++i)
    for (int b = 0; b < kBatch; ++b)
      to[i * kBatch + b] =
          first + i < p.in ? p.x[(sample + b) * p.x_row + (first + i) * p.x_step] : 0.0f;
}

template <int kBlocks, int kBatch>
inline void add_products(const int32_t* codes, int64_t row_step, int64_t columns, const float* x,
                         const float* const* books, float* sums, int64_t sum_step) {
  constexpr int kRows = kBlocks * kVectors;
  decltype(Vec::table(nullptr)) tables[kBlocks];
  for (int r = 0; r < kBlocks; ++r) tables[r] = Vec::table(books[r]);
  Vec::F total[kRows][kBatch];
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) total[r][b] = Vec::load(sums + b * sum_step + r * Vec::kWidth);
  for (int64_t column = 0; column < columns; ++column, x += kNibbles * kBatch) {
    Vec::I code[kRows];
    for (int r = 0; r < kRows; ++r)
      code[r] = Vec::load_codes(codes + r / kVectors * row_step + column * kLanes +
                                r % kVectors * Vec::kWidth);
#pragma GCC unroll 1
    for (int nibble = 0; nibble < kNibbles; ++nibble) {
      Vec::F weight[kRows];
      for (int r = 0; r < kRows; ++r)
        weight[r] = Vec::lookup(tables[r / kVectors], Vec::template index<0>(code[r]));
      for (int b = 0; b < kBatch; ++b) {
        const Vec::F value = Vec::set1(x[nibble * kBatch + b]);
        for (int r = 0; r < kRows; ++r) total[r][b] = Vec::fmadd(weight[r], value, total[r][b]);
      }
      for (int r = 0; r < kRows; ++r) code[r] = Vec::next_nibble(code[r]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) Vec::store(sums + b * sum_step + r * Vec::kWidth, total[r][b]);
}

// The codebook of every row block, padded to 16 centers.
inline const float** books_of_blocks(const Linear& p, int64_t first, int64_t last) {
  struct Values;
  struct Pointers;
  const int64_t group_blocks = div_up(p.group, kLanes);
  const int64_t first_group = first / group_blocks, groups = (last - 1) / group_blocks + 1;
  float* values = scratch<Values, float>((groups - first_group) * kLanes);
  for (int64_t g = first_group; g < groups; ++g)
    load_book(p.books, 0, g, 0, values + (g - first_group) * kLanes);
  const float** books = scratch<Pointers, const float*>(last - first);
  for (int64_t block = first; block < last; ++block)
    books[block - first] = values + (block / group_blocks - first_group) * kLanes;
  return books;
}

void scalar_nibbles(const Linear& p, const Pool& pool) {
  const NibbleLayout layout(p.rows, p.subspaces, false);
  divide(pool, layout.row_blocks, p.batch, p.picoseconds, [&](const Part& part) {
    struct Inputs;
    struct Sums;
    const int64_t rows = (part.last - part.first) * kLanes;
    const auto* codes = static_cast<const int32_t*>(p.codes);
    const float** books = books_of_blocks(p, part.first, part.last);
    for (int64_t start = part.first_sample; start < part.last_sample; start += kBatchChunk) {
      const int64_t samples = std::min(kBatchChunk, part.last_sample - start);
      float* sums = scratch<Sums, float>(samples * rows);
      std::fill(sums, sums + samples * rows, 0.0f);
      float* x = scratch<Inputs, float>(samples * kScalarTile);
      for (int64_t first = 0; first < p.in; first += kScalarTile) {
        const int64_t columns = div_up(std::min(kScalarTile, p.in - first), kNibbles);
        each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
          gather_inputs<at_once.value>(p, start + b, first, columns, x + b * kScalarTile);
        });
        each_strip(part, [&](int64_t strip, int64_t strip_end) {
          each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
            each_blocks<at_once.value>(strip, strip_end, [&](auto blocks, int64_t block) {
              add_products<blocks.value, at_once.value>(
                  codes + block * layout.row_step() + first / kNibbles * kLanes, layout.row_step(),
                  columns, x + b * kScalarTile, books + block - part.first,
                  sums + b * rows + (block - part.first) * kLanes, rows);
            });
          });
        });
      }
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t block = part.first; block < part.last; ++block)
          finish(p, block, start + b, sums + b * rows + (block - part.first) * kLanes);
    }
  });
}

}  // namespace
}  // namespace vq
