// Sub-vectors along the inputs, up to 16 centers: product quantization by tables (Jégou et al. 2011,
// section III.A, on inner products). For each sample and subspace, 16 products of the piece of the
// input with the centers; then one look-up in a register per code instead of dim multiplications.
#pragma once

#include "common.h"

namespace vq {
namespace {

constexpr int64_t kBatchChunk = 32;

// tables[sample][subspace][16] for the subspaces [first, last) of one stage, of one sample every
// `table_step` floats; tables of subspaces beyond the last are 0, as their codes are.
inline void build_tables(const Linear& p, int64_t stage, int64_t first, int64_t last,
                         int64_t first_sample, int64_t samples, float* tables,
                         int64_t table_step) {
  struct Book;
  float* book = scratch<Book, float>(p.books.dim * kLanes);
  const int64_t dim = p.books.dim;
  for (int64_t s = first; s < last; ++s) {
    if (s == first || p.books.book_step != 0) load_book(p.books, stage, 0, s, book);
    const int64_t values = std::min(dim, p.in - s * dim);
    for (int64_t b = 0; b < samples; ++b) {
      const float* x = p.x + (first_sample + b) * p.x_row + s * dim * p.x_step;
      float* table = tables + b * table_step + (s - first) * kLanes;
      Vec::F sums[kVectors];
      for (auto& sum : sums) sum = Vec::zero();
      for (int64_t j = 0; j < values; ++j) {
        const Vec::F value = Vec::set1(x[j * p.x_step]);
        for (int v = 0; v < kVectors; ++v)
          sums[v] = Vec::fmadd(value, Vec::load(book + j * kLanes + v * Vec::kWidth), sums[v]);
      }
      for (int v = 0; v < kVectors; ++v) Vec::store(table + v * Vec::kWidth, sums[v]);
    }
  }
  for (int64_t b = 0; b < samples; ++b)
    std::fill(tables + b * table_step + (last - first) * kLanes, tables + (b + 1) * table_step,
              0.0f);
}

// sums[sample][row block][16] += the tables' values at the codes of kBlocks row blocks.
template <int kBlocks, int kBatch>
inline void add_lookups(const int32_t* codes, int64_t row_step, int64_t columns,
                        const float* tables, int64_t table_step, float* sums, int64_t sum_step) {
  constexpr int kRows = kBlocks * kVectors;
  Vec::F total[kRows][kBatch];
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b)
      total[r][b] = Vec::load(sums + b * sum_step + r * Vec::kWidth);
  for (int64_t column = 0; column < columns; ++column) {
    Vec::I code[kRows];
    for (int r = 0; r < kRows; ++r)
      code[r] = Vec::load_codes(codes + r / kVectors * row_step + column * kLanes +
                                r % kVectors * Vec::kWidth);
    each_nibble([&](auto nibble) {
      Vec::Index index[kRows];
      for (int r = 0; r < kRows; ++r) index[r] = Vec::template index<nibble.value>(code[r]);
      for (int b = 0; b < kBatch; ++b) {
        const auto table =
            Vec::table(tables + b * table_step + (column * kNibbles + nibble.value) * kLanes);
        for (int r = 0; r < kRows; ++r)
          total[r][b] = Vec::add(total[r][b], Vec::lookup(table, index[r]));
      }
    });
  }
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b)
      Vec::store(sums + b * sum_step + r * Vec::kWidth, total[r][b]);
}

// Calls f(kSamples at a time), then what is left in halves: f(integral_constant, first sample).
template <int kAtOnce, typename F>
inline void each_samples(int64_t first, int64_t last, F f) {
  for (; first + kAtOnce <= last; first += kAtOnce)
    f(std::integral_constant<int, kAtOnce>{}, first);
  if constexpr (kAtOnce > 1)
    if (first < last) each_samples<kAtOnce / 2>(first, last, f);
}

// The same for row blocks: as many as Vec has registers for, then one by one.
template <typename F>
inline void each_blocks(int64_t first, int64_t last, F f) {
  for (; first + Vec::kRowBlocks <= last; first += Vec::kRowBlocks)
    f(std::integral_constant<int, Vec::kRowBlocks>{}, first);
  if constexpr (Vec::kRowBlocks > 1)
    for (; first < last; ++first) f(std::integral_constant<int, 1>{}, first);
}

void lookup_nibbles(const Linear& p, const Pool& pool) {
  const NibbleLayout layout(p.rows, p.subspaces, false);
  const double lookups = double(p.books.stages) * double(p.batch) *
                         double(layout.row_blocks) * double(p.subspaces);
  divide(pool, layout.row_blocks, p.batch, lookups, [&](const Part& part) {
    struct Tables;
    struct Sums;
    const int64_t rows = (part.last - part.first) * kLanes;
    for (int64_t start = part.first_sample; start < part.last_sample; start += kBatchChunk) {
      const int64_t samples = std::min(kBatchChunk, part.last_sample - start);
      // About 16 kB of tables for the samples that are summed side by side.
      const int64_t tile = samples < Vec::kSamples ? 256 : 64;
      float* sums = scratch<Sums, float>(samples * rows);
      std::fill(sums, sums + samples * rows, 0.0f);
      float* tables = scratch<Tables, float>(samples * tile * kLanes);
      for (int64_t stage = 0; stage < p.books.stages; ++stage) {
        const int32_t* codes = static_cast<const int32_t*>(p.codes) + stage * layout.size();
        for (int64_t s = 0; s < p.subspaces; s += tile) {
          const int64_t last = std::min(s + tile, p.subspaces);
          const int64_t columns = div_up(last - s, kNibbles), wide = columns * kNibbles;
          build_tables(p, stage, s, last, start, samples, tables, wide * kLanes);
          each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
            each_blocks(part.first, part.last, [&](auto blocks, int64_t block) {
              add_lookups<blocks.value, at_once.value>(
                  codes + block * layout.row_step() + s / kNibbles * kLanes, layout.row_step(),
                  columns, tables + b * wide * kLanes, wide * kLanes,
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
