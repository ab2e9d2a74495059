// Single weights, up to 256 centers: a piece of some rows is decoded into the cache, then multiplied
// with all samples.
#pragma once

#include "lookup_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kPiece = 512;  // inputs; a multiple of every register's width

template <int kRows, int kBatch>
inline void add_dots(const float* weights, const float* x, int64_t x_step, int64_t n, float* sums,
                     int64_t sum_step) {
  Vec::F total[kRows][kBatch];
  for (auto& of_row : total)
    for (auto& sum : of_row) sum = Vec::zero();
  for (int64_t i = 0; i < n; i += Vec::kWidth) {
    Vec::F weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = Vec::load(weights + r * kPiece + i);
    for (int b = 0; b < kBatch; ++b) {
      const Vec::F value = Vec::load(x + b * x_step + i);
      for (int r = 0; r < kRows; ++r) total[r][b] = Vec::fmadd(weight[r], value, total[r][b]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) sums[b * sum_step + r] += Vec::sum(total[r][b]);
}

void scalar_bytes(const Linear& p, const Pool& pool) {
  const double work =
      double(p.rows) * double(p.in) * (0.5 + double(p.batch) / double(2 * Vec::kWidth));
  divide(pool, div_up(p.rows, kLanes), p.batch, work, [&](const Part& part) {
    struct Inputs;
    struct Weights;
    struct Sums;
    struct Book;
    constexpr int kRows = 4;
    const int64_t wide = div_up(p.in, kLanes) * kLanes;
    float* book = scratch<Book, float>(kByteCenters);
    float* weights = scratch<Weights, float>(kRows * kPiece);
    float* sums = scratch<Sums, float>(kBatchChunk * kRows);
    float* x = scratch<Inputs, float>(kBatchChunk * wide);
    for (int64_t start = part.first_sample; start < part.last_sample; start += kBatchChunk) {
      const int64_t samples = std::min(kBatchChunk, part.last_sample - start);
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t i = 0; i < wide; ++i)
          x[b * wide + i] = i < p.in ? p.x[(start + b) * p.x_row + i * p.x_step] : 0.0f;
      int64_t loaded = -1;
      const int64_t end = std::min(part.last * kLanes, p.rows);
      for (int64_t row = part.first * kLanes; row < end; row += kRows) {
        std::fill(sums, sums + samples * kRows, 0.0f);
        for (int64_t first = 0; first < p.in; first += kPiece) {
          const int64_t n = std::min(kPiece, p.in - first), filled = div_up(n, kLanes) * kLanes;
          for (int64_t r = 0; r < kRows; ++r) {
            float* to = weights + r * kPiece;
            if (row + r < end) {
              const int64_t group = (row + r) / p.group;
              if (group != loaded) load_book(p.books, 0, loaded = group, 0, book, kByteCenters);
              const auto* codes = static_cast<const uint8_t*>(p.codes) + (row + r) * p.in + first;
              for (int64_t i = 0; i < n; ++i) to[i] = book[codes[i]];
              std::fill(to + n, to + filled, 0.0f);
            } else {
              std::fill(to, to + filled, 0.0f);
            }
          }
          each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
            add_dots<kRows, at_once.value>(weights, x + b * wide + first, wide, filled,
                                           sums + b * kRows, kRows);
          });
        }
        for (int64_t b = 0; b < samples; ++b) {
          for (int64_t r = 0; r < kRows && row + r < end; ++r) {
            const float scale = p.scale == nullptr ? 1.0f : p.scale[row + r];
            const float bias = p.bias == nullptr ? 0.0f : p.bias[row + r];
            p.y[(start + b) * p.out + row + r] = sums[b * kRows + r] * scale + bias;
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace vq
