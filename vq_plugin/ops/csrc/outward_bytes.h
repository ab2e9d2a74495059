// Sub-vectors along the outputs, up to 256 centers: some inputs by some outputs of the weight are
// decoded into the cache, then multiplied with all samples.
#pragma once

#include "lookup_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kTileInputs = 64;

// y[sample][output] += x[sample] · panel, (inputs, width), for kVectors registers of outputs.
template <int kBatch>
inline void add_panel(const float* panel, int64_t width, const float* x, int64_t x_row,
                      int64_t x_step, const float* scale, int64_t inputs, float* sums,
                      int64_t sum_step) {
  Vec::F total[kVectors][kBatch];
  for (int v = 0; v < kVectors; ++v)
    for (int b = 0; b < kBatch; ++b)
      total[v][b] = Vec::load(sums + b * sum_step + v * Vec::kWidth);
  for (int64_t i = 0; i < inputs; ++i) {
    Vec::F weight[kVectors];
    for (int v = 0; v < kVectors; ++v)
      weight[v] = Vec::load(panel + i * width + v * Vec::kWidth);
    for (int b = 0; b < kBatch; ++b) {
      const float factor = scale == nullptr ? 1.0f : scale[i];
      const Vec::F value = Vec::set1(x[b * x_row + i * x_step] * factor);
      for (int v = 0; v < kVectors; ++v) total[v][b] = Vec::fmadd(weight[v], value, total[v][b]);
    }
  }
  for (int v = 0; v < kVectors; ++v)
    for (int b = 0; b < kBatch; ++b)
      Vec::store(sums + b * sum_step + v * Vec::kWidth, total[v][b]);
}

void outward_bytes(const Linear& p, const Pool& pool) {
  const int64_t dim = p.books.dim, k = p.books.k;
  // About 64 outputs at once.
  const int64_t tile = std::max<int64_t>(1, 64 / dim), blocks = div_up(p.subspaces, tile);
  const double work = double(p.books.stages) * double(p.in) * double(p.subspaces) *
                      (2 + double(p.batch) * double(dim) / double(2 * Vec::kWidth));
  divide(pool, blocks, p.batch, work, [&](const Part& part) {
    struct Book;
    struct Columns;
    struct Panel;
    struct Sums;
    const int64_t width = div_up(tile * dim, kLanes) * kLanes;
    const int64_t samples = part.last_sample - part.first_sample;
    float* columns = scratch<Columns, float>(dim * kByteCenters);
    float* books = scratch<Book, float>(tile * kByteCenters * dim);
    float* panel = scratch<Panel, float>(kTileInputs * width);
    float* sums = scratch<Sums, float>(samples * width);
    std::fill(panel, panel + kTileInputs * width, 0.0f);
    for (int64_t block = part.first; block < part.last; ++block) {
      const int64_t s = block * tile, n = std::min(tile, p.subspaces - s);
      std::fill(sums, sums + samples * width, 0.0f);
      for (int64_t stage = 0; stage < p.books.stages; ++stage) {
        for (int64_t i = 0; i < n; ++i) {
          load_book(p.books, stage, 0, s + i, columns, kByteCenters);
          for (int64_t c = 0; c < k; ++c)
            for (int64_t j = 0; j < dim; ++j)
              books[(i * kByteCenters + c) * dim + j] = columns[j * kByteCenters + c];
        }
        const auto* codes = static_cast<const uint8_t*>(p.codes) + stage * p.rows * p.subspaces;
        for (int64_t first = 0; first < p.in; first += kTileInputs) {
          const int64_t inputs = std::min(kTileInputs, p.in - first);
          for (int64_t r = 0; r < inputs; ++r) {
            const uint8_t* code = codes + (first + r) * p.subspaces + s;
            float* to = panel + r * width;
            for (int64_t i = 0; i < n; ++i, to += dim)
              std::copy_n(books + (i * kByteCenters + code[i]) * dim, dim, to);
          }
          const float* scale = p.scale == nullptr ? nullptr : p.scale + first;
          each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
            const float* x = p.x + (part.first_sample + b) * p.x_row + first * p.x_step;
            for (int64_t v = 0; v < width; v += kLanes)
              add_panel<at_once.value>(panel + v, width, x, p.x_row, p.x_step, scale, inputs,
                                       sums + b * width + v, width);
          });
        }
      }
      const int64_t outputs = std::min(n * dim, p.out - s * dim);
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t j = 0; j < outputs; ++j)
          p.y[(part.first_sample + b) * p.out + s * dim + j] =
              sums[b * width + j] + (p.bias == nullptr ? 0.0f : p.bias[s * dim + j]);
    }
  });
}

}  // namespace
}  // namespace vq
