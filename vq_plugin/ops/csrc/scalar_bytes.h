// Single weights, up to 256 centers: a piece of some rows is decoded into the cache, then
// multiplied with all samples.
#pragma once

#include "lookup_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kPiece = 1024;  // inputs; a multiple of 64
constexpr int64_t kPieceRows = 4;
constexpr int64_t kPieceSamples = 64;

// The sums of kCount registers, side by side. Each is summed in the same order, wherever it stands.
template <int kCount>
inline void sum_each(const Vec::F* values, float* sums) {
  constexpr int kPadded = (kCount + Vec::kWidth - 1) / Vec::kWidth * Vec::kWidth;
  Vec::F level[kPadded];
  for (int i = 0; i < kPadded; ++i) level[i] = i < kCount ? values[i] : Vec::zero();
  for (int n = kPadded; n > kPadded / Vec::kWidth; n /= 2)
    for (int i = 0; i < n / 2; ++i)
      level[i] = Vec::add(Vec::even(level[2 * i], level[2 * i + 1]),
                          Vec::odd(level[2 * i], level[2 * i + 1]));
  for (int i = 0; i < kCount; i += Vec::kWidth)
    Vec::store_part(sums + i, kCount - i, level[i / Vec::kWidth]);
}

// sums[sample][row] += the products of kPieceRows rows with kBatch samples.
template <int kBatch>
inline void add_dots(const float* weights, const float* x, int64_t x_step, int64_t n, float* sums) {
  Vec::F total[kBatch * kPieceRows];
  for (auto& sum : total) sum = Vec::zero();
  for (int64_t i = 0; i < n; i += Vec::kWidth) {
    Vec::F weight[kPieceRows];
    for (int r = 0; r < kPieceRows; ++r) weight[r] = Vec::load(weights + r * kPiece + i);
    for (int b = 0; b < kBatch; ++b) {
      const Vec::F value = Vec::load(x + b * x_step + i);
      for (int r = 0; r < kPieceRows; ++r)
        total[b * kPieceRows + r] = Vec::fmadd(weight[r], value, total[b * kPieceRows + r]);
    }
  }
  float found[kBatch * kPieceRows];
  sum_each<kBatch * kPieceRows>(total, found);
  for (int i = 0; i < kBatch * kPieceRows; ++i) sums[i] += found[i];
}

void scalar_bytes(const Linear& p, const Pool& pool) {
  // By rows alone: otherwise every thread would decode all of them.
  divide(pool, div_up(p.rows, kLanes), 1, p.picoseconds, [&](const Part& part) {
    struct Inputs;
    struct Weights;
    struct Book;
    struct Table;
    const int64_t wide = div_up(p.in, kLanes) * kLanes;
    float* book = scratch<Book, float>(kByteCenters);
    auto* table = scratch<Table, Vec::Table256>(1);
    float* weights = scratch<Weights, float>(kPieceRows * kPiece);
    // A code beyond the codebook, and a row beyond the last, finds zeros.
    std::fill(book, book + kByteCenters, 0.0f);
    std::fill(weights, weights + kPieceRows * kPiece, 0.0f);
    float* x = scratch<Inputs, float>(std::min(kPieceSamples, p.batch) * wide);
    float sums[kPieceSamples * kPieceRows];
    const int64_t end = std::min(part.last * kLanes, p.rows);
    for (int64_t start = 0; start < p.batch; start += kPieceSamples) {
      const int64_t samples = std::min(kPieceSamples, p.batch - start);
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t i = 0; i < wide; ++i)
          x[b * wide + i] = i < p.in ? p.x[(start + b) * p.x_row + i * p.x_step] : 0.0f;
      int64_t loaded = -1;
      for (int64_t row = part.first * kLanes; row < end; row += kPieceRows) {
        const int64_t rows = std::min(kPieceRows, end - row);
        std::fill(sums, sums + samples * kPieceRows, 0.0f);
        for (int64_t first = 0; first < p.in; first += kPiece) {
          const int64_t n = std::min(kPiece, p.in - first);
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t group = (row + r) / p.group;
            if (group != loaded) {
              load_book(p.books, 0, loaded = group, 0, book, kByteCenters);
              Vec::load_table256(book, p.books.rounding == Rounding::half, table);
            }
            const auto* codes = static_cast<const uint8_t*>(p.codes) + (row + r) * p.in + first;
            Vec::lookup256(*table, codes, n, weights + r * kPiece);
          }
          each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
            add_dots<at_once.value>(weights, x + b * wide + first, wide,
                                    div_up(n, Vec::kWidth) * Vec::kWidth, sums + b * kPieceRows);
          });
        }
        for (int64_t b = 0; b < samples; ++b) {
          for (int64_t r = 0; r < rows; ++r) {
            const float scale = p.scale == nullptr ? 1.0f : p.scale[row + r];
            const float bias = p.bias == nullptr ? 0.0f : p.bias[row + r];
            p.y[(start + b) * p.out + row + r] = sums[b * kPieceRows + r] * scale + bias;
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace vq
