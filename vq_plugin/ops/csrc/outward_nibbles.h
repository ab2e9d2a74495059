// Sub-vectors along the outputs, up to 16 centers. Inputs stand side by side in a register: for
// each output of a subspace their weights are looked up, multiplied and summed.
#pragma once

#include "lookup_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kOutwardChunk = 8;  // samples whose inputs stay near

// sums[value][sample] += x · the values of one subspace's codes, for kValues outputs of it.
template <int kNibble, int kValues, int kBatch>
inline void add_outward(const int32_t* codes, int64_t blocks, const float* book, const float* x,
                        int64_t x_step, float* sums) {
  decltype(Vec::table(nullptr)) tables[kValues];
  for (int j = 0; j < kValues; ++j) tables[j] = Vec::table(book + j * kLanes);
  Vec::F total[kValues][kBatch];
  for (auto& of_value : total)
    for (auto& sum : of_value) sum = Vec::zero();
  for (int64_t i = 0; i < blocks * kLanes; i += Vec::kWidth) {
    const auto index = Vec::template index<kNibble>(Vec::load_codes(codes + i));
    Vec::F value[kBatch];
    for (int b = 0; b < kBatch; ++b) value[b] = Vec::load(x + b * x_step + i);
    for (int j = 0; j < kValues; ++j) {
      const Vec::F weight = Vec::lookup(tables[j], index);
      for (int b = 0; b < kBatch; ++b) total[j][b] = Vec::fmadd(weight, value[b], total[j][b]);
    }
  }
  for (int j = 0; j < kValues; ++j)
    for (int b = 0; b < kBatch; ++b) sums[j * kBatch + b] += Vec::sum(total[j][b]);
}

// All outputs of one subspace: four at a time, then two, then one.
template <int kNibble, int kValues, int kBatch>
inline void each_value(const int32_t* codes, int64_t blocks, const float* book, const float* x,
                       int64_t x_step, int64_t values, float* sums) {
  for (; values >= kValues; values -= kValues) {
    add_outward<kNibble, kValues, kBatch>(codes, blocks, book, x, x_step, sums);
    book += kValues * kLanes;
    sums += kValues * kBatch;
  }
  if constexpr (kValues > 1)
    if (values > 0)
      each_value<kNibble, kValues / 2, kBatch>(codes, blocks, book, x, x_step, values, sums);
}

void outward_nibbles(const Linear& p, const Pool& pool) {
  const NibbleLayout layout(p.rows, p.subspaces, true);
  divide(pool, layout.column_blocks, p.batch, p.picoseconds, [&](const Part& part) {
    struct Inputs;
    struct Sums;
    struct Book;
    constexpr int kValues = Vec::kWidth == 16 ? 4 : 2;
    const int64_t wide = layout.row_blocks * kLanes, dim = p.books.dim;
    float* book = scratch<Book, float>(dim * kLanes);
    float* sums = scratch<Sums, float>(dim * Vec::kSamples);
    float* inputs = scratch<Inputs, float>(wide * kOutwardChunk);
    for (int64_t start = part.first_sample; start < part.last_sample; start += kOutwardChunk) {
      const int64_t samples = std::min(kOutwardChunk, part.last_sample - start);
      for (int64_t b = 0; b < samples; ++b) {
        const float* x = p.x + (start + b) * p.x_row;
        for (int64_t i = 0; i < wide; ++i)
          inputs[b * wide + i] =
              i >= p.in ? 0.0f : x[i * p.x_step] * (p.scale == nullptr ? 1.0f : p.scale[i]);
      }
      for (int64_t column = part.first; column < part.last; ++column) {
        each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
          constexpr int kBatch = at_once.value;
          each_nibble([&](auto nibble) {
            const int64_t s = column * kNibbles + nibble.value;
            if (s >= p.subspaces) return;
            const int64_t values = std::min(dim, p.out - s * dim);
            std::fill(sums, sums + dim * kBatch, 0.0f);
            for (int64_t stage = 0; stage < p.books.stages; ++stage) {
              load_book(p.books, stage, 0, s, book);
              each_value<nibble.value, kValues, kBatch>(
                  static_cast<const int32_t*>(p.codes) + stage * layout.size() +
                      column * layout.column_step(),
                  layout.row_blocks, book, inputs + b * wide, wide, values, sums);
            }
            for (int64_t j = 0; j < values; ++j) {
              const float bias = p.bias == nullptr ? 0.0f : p.bias[s * dim + j];
              for (int i = 0; i < kBatch; ++i)
                p.y[(start + b + i) * p.out + s * dim + j] = sums[j * kBatch + i] + bias;
            }
          });
        });
      }
    }
  });
}

}  // namespace
}  // namespace vq
