// Sub-vectors along the inputs, up to 256 centers: tables in memory, where samples stand side by
// side so that one look-up serves all of them.
#pragma once

#include "cost.h"
#include "lookup_nibbles.h"

namespace vq {
namespace {

// table[c] = the products of center c with one piece of one sample.
inline void all_center_products(const float* book, int64_t k, const float* x, int64_t x_step,
                                int64_t values, float* table) {
  for (int64_t c = 0; c < k; c += kLanes) {
    Vec::F sums[kVectors];
    for (auto& sum : sums) sum = Vec::zero();
    for (int64_t j = 0; j < values; ++j) {
      const Vec::F value = Vec::set1(x[j * x_step]);
      for (int v = 0; v < kVectors; ++v)
        sums[v] =
            Vec::fmadd(value, Vec::load(book + j * kByteCenters + c + v * Vec::kWidth), sums[v]);
    }
    for (int v = 0; v < kVectors; ++v) Vec::store(table + c + v * Vec::kWidth, sums[v]);
  }
}

inline void lookup_bytes_one_sample(const Linear& p, const Part& part, int64_t sample) {
  struct Book;
  struct Tables;
  struct Sums;
  constexpr int64_t tile = 16;
  const int64_t k = p.books.k, dim = p.books.dim;
  const int64_t rows = (part.last - part.first) * kLanes;
  float* book = scratch<Book, float>(dim * kByteCenters);
  float* tables = scratch<Tables, float>(tile * kByteCenters);
  float* sums = scratch<Sums, float>(rows);
  std::fill(sums, sums + rows, 0.0f);
  const int64_t first = part.first * kLanes, last = std::min(part.last * kLanes, p.rows);
  for (int64_t stage = 0; stage < p.books.stages; ++stage) {
    const auto* codes = static_cast<const uint8_t*>(p.codes) + stage * p.rows * p.subspaces;
    for (int64_t s = 0; s < p.subspaces; s += tile) {
      const int64_t n = std::min(tile, p.subspaces - s);
      for (int64_t i = 0; i < n; ++i) {
        if ((s == 0 && i == 0) || p.books.book_step != 0)
          load_book(p.books, stage, 0, s + i, book, kByteCenters);
        all_center_products(book, k, p.x + sample * p.x_row + (s + i) * dim * p.x_step, p.x_step,
                            std::min(dim, p.in - (s + i) * dim), tables + i * kByteCenters);
      }
      for (int64_t row = first; row < last; ++row) {
        const uint8_t* code = codes + row * p.subspaces + s;
        float sum = sums[row - first];
        for (int64_t i = 0; i < n; ++i) sum += tables[i * kByteCenters + code[i]];
        sums[row - first] = sum;
      }
    }
  }
  for (int64_t block = part.first; block < part.last; ++block)
    finish(p, block, sample, sums + (block - part.first) * kLanes);
}

// table[center][sample]: kLanes samples side by side, x[input][sample].
inline void sample_products(const float* book, int64_t k, const float* x, int64_t values,
                            float* table) {
  constexpr int kCenters = 4;
  for (int64_t c = 0; c < k; c += kCenters) {
    Vec::F sums[kCenters][kVectors];
    for (auto& of_center : sums)
      for (auto& sum : of_center) sum = Vec::zero();
    for (int64_t j = 0; j < values; ++j)
      for (int i = 0; i < kCenters; ++i)
        for (int v = 0; v < kVectors; ++v)
          sums[i][v] = Vec::fmadd(Vec::set1(book[j * kByteCenters + c + i]),
                                  Vec::load(x + j * kLanes + v * Vec::kWidth), sums[i][v]);
    for (int i = 0; i < kCenters; ++i)
      for (int v = 0; v < kVectors; ++v)
        Vec::store(table + (c + i) * kLanes + v * Vec::kWidth, sums[i][v]);
  }
}

inline void lookup_bytes_samples(const Linear& p, const Part& part, int64_t sample,
                                 int64_t samples) {
  struct Book;
  struct Tables;
  struct Sums;
  struct Inputs;
  constexpr int64_t tile = 4;  // tables near enough, and sums loaded and stored once for them
  const int64_t k = p.books.k, dim = p.books.dim;
  constexpr int64_t table = kByteCenters * kLanes;
  const int64_t rows = (part.last - part.first) * kLanes;
  float* book = scratch<Book, float>(dim * kByteCenters);
  float* x = scratch<Inputs, float>(dim * kLanes);
  float* tables = scratch<Tables, float>(tile * table);
  float* sums = scratch<Sums, float>(rows * kLanes);
  std::fill(sums, sums + rows * kLanes, 0.0f);
  const int64_t first = part.first * kLanes, last = std::min(part.last * kLanes, p.rows);
  for (int64_t stage = 0; stage < p.books.stages; ++stage) {
    const auto* codes = static_cast<const uint8_t*>(p.codes) + stage * p.rows * p.subspaces;
    for (int64_t s = 0; s < p.subspaces; s += tile) {
      const int64_t n = std::min(tile, p.subspaces - s);
      for (int64_t i = 0; i < n; ++i) {
        if ((s == 0 && i == 0) || p.books.book_step != 0)
          load_book(p.books, stage, 0, s + i, book, kByteCenters);
        const int64_t at = (s + i) * dim, values = std::min(dim, p.in - at);
        for (int64_t j = 0; j < values; ++j)
          for (int64_t b = 0; b < kLanes; ++b)
            x[j * kLanes + b] =
                b < samples ? p.x[(sample + b) * p.x_row + (at + j) * p.x_step] : 0.0f;
        sample_products(book, k, x, values, tables + i * table);
      }
      for (int64_t row = first; row < last; ++row) {
        const uint8_t* code = codes + row * p.subspaces + s;
        float* sum = sums + (row - first) * kLanes;
        Vec::F total[kVectors];
        for (int v = 0; v < kVectors; ++v) total[v] = Vec::load(sum + v * Vec::kWidth);
        for (int64_t i = 0; i < n; ++i)
          for (int v = 0; v < kVectors; ++v)
            total[v] = Vec::add(total[v],
                                Vec::load(tables + i * table + code[i] * kLanes + v * Vec::kWidth));
        for (int v = 0; v < kVectors; ++v) Vec::store(sum + v * Vec::kWidth, total[v]);
      }
    }
  }
  alignas(64) float column[kLanes];
  for (int64_t b = 0; b < samples; ++b) {
    for (int64_t block = part.first; block < part.last; ++block) {
      for (int64_t i = 0; i < kLanes; ++i)
        column[i] = sums[((block - part.first) * kLanes + i) * kLanes + b];
      finish(p, block, sample + b, column);
    }
  }
}

void lookup_bytes(const Linear& p, const Pool& pool) {
  const int64_t blocks = div_up(p.rows, kLanes);
  divide(pool, blocks, p.batch, p.picoseconds, [&](const Part& part) {
    for (int64_t b = part.first_sample; b < part.last_sample;) {
      const int64_t samples = std::min(kLanes, part.last_sample - b);
      // By the whole batch: a sample's sum must not depend on how the work is cut.
      if (p.batch < kFewSamples) {
        lookup_bytes_one_sample(p, part, b++);
      } else {
        lookup_bytes_samples(p, part, b, samples);
        b += samples;
      }
    }
  });
}

}  // namespace
}  // namespace vq
