// Single weights with 8-bit arithmetic, as dynamic int8 quantization does: inputs of a sample are
// rounded to 7 bits and a sign with one scale for some inputs (a tile), centers to 7 bits: AVX2 adds
// two products in 16 bits. Sums are of integers, so outputs are the same bits on every instruction
// set.
#pragma once

#include <cmath>

#include "scalar_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kByteTile = 1024;
// A line more than a power of two, as samples stand side by side.
constexpr int64_t kTileDwords = kByteTile / 4 + 16;

// NaN where one of n values is NaN or infinite, otherwise 0.
inline float times_zero(const float* x, int64_t n) {
  Vec::F sum = Vec::zero();
  for (int64_t i = 0; i < n; i += Vec::kWidth) sum = Vec::fmadd(Vec::load(x + i), Vec::zero(), sum);
  return Vec::sum(sum);
}

// Centers as bytes: center ≈ low + step · byte.
struct ByteBook {
  alignas(16) uint8_t bytes[kLanes];
  float low, step;
};

inline ByteBook to_byte_book(const float* book) {
  ByteBook r;
  const auto [low, high] = std::minmax_element(book, book + kLanes);
  r.low = *low;
  r.step = (*high - *low) / 127.0f;
  const float inverse = r.step > 0 ? 1.0f / r.step : 0.0f;
  for (int64_t c = 0; c < kLanes; ++c)
    r.bytes[c] =
        static_cast<uint8_t>(std::min(std::nearbyint((book[c] - r.low) * inverse), 127.0f));
  return r;
}

// What the codes of one row block's first rows lose on average, of some columns of 8 that all rows
// have. Where inputs have a mean, as after a ReLU, it would add up over all of them.
inline float mean_error(const ByteBook& bytes, const float* book, const int32_t* codes,
                        int64_t rows, int64_t columns) {
  constexpr int64_t kColumns = 64;
  const int64_t some = std::min(columns, kColumns);
  int32_t counts[kLanes] = {};
  for (int64_t i = 0; i < some; ++i)
    for (int64_t row = 0; row < rows; ++row)
      for (int n = 0; n < kNibbles; ++n)
        ++counts[static_cast<uint32_t>(codes[i * columns / some * kLanes + row]) >> (4 * n) & 15];
  double sum = 0;
  for (int64_t c = 0; c < kLanes; ++c)
    sum += counts[c] * (double(book[c]) - bytes.low - double(bytes.step) * bytes.bytes[c]);
  return some > 0 ? static_cast<float>(sum / double(some * rows * kNibbles)) : 0.0f;
}

// Inputs as signed bytes: x ≈ step · byte.
struct ByteInputs {
  float step;
  int32_t sum;  // of the bytes
};

// Of each 8 inputs the even ones in the first dword, the odd ones in the second. `x` holds a
// multiple of 16.
inline ByteInputs to_byte_inputs(const float* x, int64_t n, int32_t* to) {
  Vec::F largest = Vec::zero();
  for (int64_t i = 0; i < n; i += Vec::kWidth) largest = Vec::max_abs(largest, Vec::load(x + i));
  // Bytes have no NaN: the step carries it to the outputs.
  const float not_finite = times_zero(x, n);
  if (std::isnan(not_finite)) {
    std::fill(to, to + n / 4, 0);
    return {not_finite, 0};
  }
  const float top = Vec::max(largest);
  const Vec::F inverse = Vec::set1(top > 0 ? 127.0f / top : 0.0f);
  Vec::I sum = Vec::zero_int();
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec::F sixteen[kVectors];
    for (int v = 0; v < kVectors; ++v)
      sixteen[v] = Vec::mul(Vec::load(x + i + v * Vec::kWidth), inverse);
    Vec::store_even_odd(to + i / 4, sixteen, &sum);
  }
  return {top / 127.0f, Vec::sum_int(sum)};
}

template <int kBlocks, int kBatch>
inline void add_byte_products(const int32_t* codes, int64_t row_step, int64_t columns,
                              const int32_t* x, const ByteInputs* inputs, const ByteBook* books,
                              const int64_t* book_of_block, float* sums, int64_t sum_step) {
  constexpr int kRows = kBlocks * kVectors;
  Vec::Bytes tables[kBlocks];
  for (int r = 0; r < kBlocks; ++r) tables[r] = Vec::table16(books[book_of_block[r]].bytes);
  Vec::I total[kRows][kBatch];
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) total[r][b] = Vec::zero_int();
  for (int64_t column = 0; column < columns; ++column, x += 2) {
    Vec::I code[kRows];
    for (int r = 0; r < kRows; ++r)
      code[r] = Vec::load_codes(codes + r / kVectors * row_step + column * kLanes +
                                r % kVectors * Vec::kWidth);
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      Vec::Bytes weight[kRows];
      for (int r = 0; r < kRows; ++r) {
        weight[r] = Vec::lookup16(tables[r / kVectors], Vec::even_nibbles(code[r]));
        if (odd == 0) code[r] = Vec::next_nibble(code[r]);
      }
      for (int b = 0; b < kBatch; ++b)
        for (int r = 0; r < kRows; ++r)
          total[r][b] = Vec::dot_bytes(total[r][b], weight[r], x[b * kTileDwords + odd]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const ByteBook& book = books[book_of_block[r / kVectors]];
    for (int b = 0; b < kBatch; ++b) {
      float* sum = sums + b * sum_step + r * Vec::kWidth;
      const Vec::F low = Vec::set1(book.low * float(inputs[b].sum) * inputs[b].step);
      const Vec::F step = Vec::set1(book.step * inputs[b].step);
      Vec::store(sum, Vec::add(Vec::fused(Vec::to_float(total[r][b]), step, low), Vec::load(sum)));
    }
  }
}

void scalar_nibbles_fast(const Linear& p, const Pool& pool) {
  const NibbleLayout layout(p.rows, p.subspaces, false);
  divide(pool, layout.row_blocks, p.batch, p.picoseconds, [&](const Part& part) {
    struct Floats;
    struct Bytes;
    struct Sums;
    struct Books;
    struct Owners;
    const int64_t rows = (part.last - part.first) * kLanes, blocks_here = part.last - part.first;
    const auto* codes = static_cast<const int32_t*>(p.codes);
    const float** floats_of = books_of_blocks(p, part.first, part.last);
    auto* books = scratch<Books, ByteBook>(blocks_here);
    auto* book_of_block = scratch<Owners, int64_t>(blocks_here);
    for (int64_t i = 0; i < blocks_here; ++i) {
      const bool same = i > 0 && floats_of[i] == floats_of[i - 1];
      book_of_block[i] = same ? book_of_block[i - 1] : i;
      if (same) continue;
      books[i] = to_byte_book(floats_of[i]);
      // Of the group's first rows, whatever part of it is computed here.
      const int64_t group_blocks = div_up(p.group, kLanes);
      const int64_t first = (part.first + i) / group_blocks * group_blocks;
      books[i].low += mean_error(books[i], floats_of[i], codes + first * layout.row_step(),
                                 std::min(kLanes, p.rows - first * kLanes), p.in / kNibbles);
    }
    float* floats = scratch<Floats, float>(kByteTile);
    for (int64_t start = part.first_sample; start < part.last_sample; start += kBatchChunk) {
      const int64_t samples = std::min(kBatchChunk, part.last_sample - start);
      float* sums = scratch<Sums, float>(samples * rows);
      std::fill(sums, sums + samples * rows, 0.0f);
      int32_t* bytes = scratch<Bytes, int32_t>(kTileDwords * samples);
      ByteInputs inputs[kBatchChunk];
      for (int64_t first = 0; first < p.in; first += kByteTile) {
        const int64_t n = std::min(kByteTile, p.in - first), columns = div_up(n, kNibbles);
        const int64_t filled = div_up(n, kLanes) * kLanes;
        for (int64_t b = 0; b < samples; ++b) {
          const float* x = p.x + (start + b) * p.x_row + first * p.x_step;
          const bool as_they_are = p.x_step == 1 && n == filled;
          if (!as_they_are) {
            for (int64_t i = 0; i < n; ++i) floats[i] = x[i * p.x_step];
            std::fill(floats + n, floats + filled, 0.0f);
          }
          inputs[b] = to_byte_inputs(as_they_are ? x : floats, filled, bytes + b * kTileDwords);
        }
        each_strip(part, [&](int64_t strip, int64_t strip_end) {
          each_samples<Vec::kSamples>(0, samples, [&](auto at_once, int64_t b) {
            each_blocks<at_once.value>(strip, strip_end, [&](auto blocks, int64_t block) {
              add_byte_products<blocks.value, at_once.value>(
                  codes + block * layout.row_step() + first / kNibbles * kLanes, layout.row_step(),
                  columns, bytes + b * kTileDwords, inputs + b, books,
                  book_of_block + block - part.first,
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
