// Sub-vectors along the inputs, up to 256 centers: tables in memory, where samples stand side by
// side so that one look-up serves all of them.
#pragma once

#include "centers.h"
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

// Registers with kDim products of 16 centers, one center after another -> their sums.
template <int kDim>
inline __attribute__((always_inline)) void store_sums(const Vec::F* products, float* to) {
  if constexpr (kDim == 1) {
    for (int v = 0; v < kVectors; ++v) Vec::store(to + v * Vec::kWidth, products[v]);
  } else {
    constexpr int kHalf = kDim / 2 * kVectors;
    Vec::F sums[kHalf];
    for (int i = 0; i < kHalf; ++i)
      sums[i] = Vec::add(Vec::even(products[2 * i], products[2 * i + 1]),
                         Vec::odd(products[2 * i], products[2 * i + 1]));
    store_sums<kDim / 2>(sums, to);
  }
}

// The same of a book whose centers stand one after another, as it is in memory: to turn a book that
// serves one table alone takes longer. x is the piece, repeated up to kLanes values.
template <int kDim>
inline void products_of_centers(const float* book, int64_t k, Rounding rounding, const float* x,
                                float* table) {
  constexpr int kRegisters = kDim * kVectors;
  alignas(64) float rest[kLanes * kDim];
  for (int64_t c = 0; c < k; c += kLanes) {
    const float* from = sixteen_centers<kDim>(book, k, c, rest);
    Vec::F products[kRegisters];
    for (int v = 0; v < kRegisters; ++v)
      products[v] = Vec::mul(rounded(Vec::load(from + v * Vec::kWidth), rounding),
                             Vec::load(x + v % kVectors * Vec::kWidth));
    store_sums<kDim>(products, table + c);
  }
}

// Whether it has done so.
inline bool own_book_products(const Books& books, int64_t stage, int64_t s, const float* x,
                              int64_t x_step, int64_t values, float* table) {
  const int64_t dim = books.dim;
  if (books.book_step == 0 || !together(books) || values != dim) return false;
  const float* book = book_at(books, stage, s);
  alignas(64) float piece[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) piece[j] = x[j % dim * x_step];
  if (dim == 2)
    products_of_centers<2>(book, books.k, books.rounding, piece, table);
  else if (dim == 4)
    products_of_centers<4>(book, books.k, books.rounding, piece, table);
  else if (dim == 8)
    products_of_centers<8>(book, books.k, books.rounding, piece, table);
  else
    return false;
  return true;
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
        const float* x = p.x + sample * p.x_row + (s + i) * dim * p.x_step;
        const int64_t values = std::min(dim, p.in - (s + i) * dim);
        float* table = tables + i * kByteCenters;
        if (own_book_products(p.books, stage, s + i, x, p.x_step, values, table)) continue;
        if ((s == 0 && i == 0) || p.books.book_step != 0)
          load_book(p.books, stage, 0, s + i, book, kByteCenters);
        all_center_products(book, k, x, p.x_step, values, table);
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
inline void sample_products(const Centers& book, int64_t k, const float* x, int64_t values,
                            float* table) {
  constexpr int kCenters = 4;
  for (int64_t c = 0; c < k; c += kCenters) {
    const float* center[kCenters];
    // Past the last center, the last one.
    for (int i = 0; i < kCenters; ++i)
      center[i] = book.data + std::min(c + i, k - 1) * book.center_step;
    Vec::F sums[kCenters][kVectors];
    for (auto& of_center : sums)
      for (auto& sum : of_center) sum = Vec::zero();
    for (int64_t j = 0; j < values; ++j)
      for (int i = 0; i < kCenters; ++i)
        for (int v = 0; v < kVectors; ++v)
          sums[i][v] = Vec::fmadd(Vec::set1(center[i][j * book.value_step]),
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
  Centers centers{};
  std::fill(sums, sums + rows * kLanes, 0.0f);
  const int64_t first = part.first * kLanes, last = std::min(part.last * kLanes, p.rows);
  for (int64_t stage = 0; stage < p.books.stages; ++stage) {
    const auto* codes = static_cast<const uint8_t*>(p.codes) + stage * p.rows * p.subspaces;
    for (int64_t s = 0; s < p.subspaces; s += tile) {
      const int64_t n = std::min(tile, p.subspaces - s);
      for (int64_t i = 0; i < n; ++i) {
        if ((s == 0 && i == 0) || p.books.book_step != 0)
          centers = centers_of(p.books, stage, s + i, book);
        const int64_t at = (s + i) * dim, values = std::min(dim, p.in - at);
        for (int64_t j = 0; j < values; ++j)
          for (int64_t b = 0; b < kLanes; ++b)
            x[j * kLanes + b] =
                b < samples ? p.x[(sample + b) * p.x_row + (at + j) * p.x_step] : 0.0f;
        sample_products(centers, k, x, values, tables + i * table);
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
