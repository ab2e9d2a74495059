// What the kernels of every instruction set share; included after a Vec.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "kernels.h"
#include "packing.h"

namespace vq {
namespace {

constexpr int kVectors = static_cast<int>(kLanes) / Vec::kWidth;  // registers of one row block

// Memory that a thread keeps from one call to the next, a block for each purpose.
template <typename Purpose, typename T>
T* scratch(int64_t count) {
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
    ~Block() { std::free(data); }
  };
  static thread_local Block block;
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64) / 64 * 64;
  if (block.bytes < bytes) {
    std::free(block.data);
    block.bytes = 0;
    block.data = std::aligned_alloc(64, bytes);
    if (block.data == nullptr) throw std::bad_alloc();
    block.bytes = bytes;
  }
  return static_cast<T*>(block.data);
}

// Calls f.template operator()<0>(), ..., <7>(): nibbles are shifts by constants.
template <typename F, int... kNibble>
inline __attribute__((always_inline)) void each_nibble(F f,
                                                       std::integer_sequence<int, kNibble...>) {
  (f(std::integral_constant<int, kNibble>{}), ...);
}
template <typename F>
inline __attribute__((always_inline)) void each_nibble(F f) {
  each_nibble(f, std::make_integer_sequence<int, 8>{});
}

inline Vec::F rounded(Vec::F v, Rounding rounding) {
  if (rounding == Rounding::half) return Vec::round_half(v);
  if (rounding == Rounding::bfloat) return Vec::round_bfloat(v);
  return v;
}

void round_all(const float* from, int64_t n, Rounding rounding, float* to) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth)
    Vec::store(to + i, rounded(Vec::load(from + i), rounding));
  if (i < n) Vec::store_part(to + i, n - i, rounded(Vec::load_part(from + i, n - i), rounding));
}

// Tables for codes of a byte have room for every byte: a damaged code must not read beyond them.
constexpr int64_t kByteCenters = 256;

inline int64_t padded(int64_t k) { return div_up(k, kLanes) * kLanes; }

// Registers with kDim values of 16 centers, one center after another -> the first values of all
// centers at `to`, the second ones at to + row, ...
template <int kDim>
inline __attribute__((always_inline)) void store_by_value(const Vec::F* values, int64_t row,
                                                          Rounding rounding, float* to) {
  if constexpr (kDim == 1) {
    for (int v = 0; v < kVectors; ++v)
      Vec::store(to + v * Vec::kWidth, rounded(values[v], rounding));
  } else {
    constexpr int kHalf = kDim / 2 * kVectors;
    Vec::F even[kHalf], odd[kHalf];
    for (int i = 0; i < kHalf; ++i) {
      even[i] = Vec::even(values[2 * i], values[2 * i + 1]);
      odd[i] = Vec::odd(values[2 * i], values[2 * i + 1]);
    }
    store_by_value<kDim / 2>(even, 2 * row, rounding, to);
    store_by_value<kDim / 2>(odd, 2 * row, rounding, to + row);
  }
}

template <int kDim>
inline void load_whole_book(const float* from, int64_t k, int64_t row, Rounding rounding,
                            float* to) {
  for (int64_t c = 0; c < k; c += kLanes, from += kLanes * kDim) {
    Vec::F values[kDim * kVectors];
    for (int v = 0; v < kDim * kVectors; ++v) values[v] = Vec::load(from + v * Vec::kWidth);
    store_by_value<kDim>(values, row, rounding, to + c);
  }
}

// One codebook as (dim, row), rounded; centers from k to padded(k) repeat the first one.
inline void load_book(const Books& books, int64_t stage, int64_t group, int64_t book, float* to,
                      int64_t row = kLanes) {
  const float* from =
      books.data + stage * books.stage_step + group * books.group_step + book * books.book_step;
  const int64_t wide = padded(books.k);
  if (books.k == wide && books.center_step == books.dim && books.value_step <= 1) {
    if (books.dim == 1) return load_whole_book<1>(from, wide, row, books.rounding, to);
    if (books.dim == 2) return load_whole_book<2>(from, wide, row, books.rounding, to);
    if (books.dim == 4) return load_whole_book<4>(from, wide, row, books.rounding, to);
    if (books.dim == 8) return load_whole_book<8>(from, wide, row, books.rounding, to);
  }
  for (int64_t j = 0; j < books.dim; ++j, to += row) {
    const float* column = from + j * books.value_step;
    for (int64_t c = 0; c < books.k; ++c) to[c] = column[c * books.center_step];
    for (int64_t c = books.k; c < wide; ++c) to[c] = column[0];
    for (int64_t c = 0; c < wide; c += Vec::kWidth)
      Vec::store(to + c, rounded(Vec::load(to + c), books.rounding));
  }
}

// Fewer than 16 rows or columns.
inline void transpose_rest(const float* from, int64_t from_row, int64_t rows, int64_t columns,
                           float* to, int64_t to_row) {
  const auto part = [](int64_t n, int v) {
    return std::clamp<int64_t>(n - v * Vec::kWidth, 0, Vec::kWidth);
  };
  Vec::F values[kLanes * kVectors];
  for (int i = 0; i < kLanes; ++i)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t n = i < rows ? part(columns, v) : 0;
      values[i * kVectors + v] =
          n > 0 ? Vec::load_part(from + i * from_row + v * Vec::kWidth, n) : Vec::zero();
    }
  alignas(64) float turned[kLanes * kLanes];
  store_by_value<kLanes>(values, kLanes, Rounding::none, turned);
  for (int64_t j = 0; j < columns; ++j)
    for (int v = 0; v < kVectors; ++v)
      if (const int64_t n = part(rows, v); n > 0)
        Vec::store_part(to + j * to_row + v * Vec::kWidth, n,
                        Vec::load(turned + j * kLanes + v * Vec::kWidth));
}

void transpose(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to,
               int64_t to_row) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* block = from + r * from_row + c;
      float* turned = to + c * to_row + r;
      if (rows - r >= kLanes && columns - c >= kLanes) {
        Vec::F values[kLanes * kVectors];
        for (int i = 0; i < kLanes; ++i)
          for (int v = 0; v < kVectors; ++v)
            values[i * kVectors + v] = Vec::load(block + i * from_row + v * Vec::kWidth);
        store_by_value<kLanes>(values, to_row, Rounding::none, turned);
      } else {
        transpose_rest(block, from_row, std::min(kLanes, rows - r), std::min(kLanes, columns - c),
                       turned, to_row);
      }
    }
  }
}

// A part of the work of one thread: some row blocks for some samples.
struct Part {
  int64_t first, last;                // blocks
  int64_t first_sample, last_sample;  // samples
};

// Cuts the work by samples, which repeats no work, where every thread gets some; otherwise by
// blocks. Little work stays on one thread.
template <typename Body>
void divide(const Pool& pool, int64_t blocks, int64_t batch, double picoseconds, Body body) {
  constexpr double kWorthAThread = 15e6;
  const auto worth = static_cast<int64_t>(picoseconds / kWorthAThread);
  const int64_t threads = std::clamp<int64_t>(worth, 1, std::max(pool.threads, 1));
  const bool by_sample = batch >= Vec::kSamples * threads;
  const int64_t units = by_sample ? div_up(batch, Vec::kSamples) : blocks;
  const int64_t tasks = std::min(threads, units);
  struct Context {
    Body* body;
    int64_t tasks, units, blocks, batch;
    bool by_sample;
  } context{&body, tasks, units, blocks, batch, by_sample};
  const auto run = [](int64_t task, void* opaque) {
    const auto& c = *static_cast<Context*>(opaque);
    const int64_t first = task * c.units / c.tasks, last = (task + 1) * c.units / c.tasks;
    if (c.by_sample)
      (*c.body)(Part{0, c.blocks, first * Vec::kSamples, std::min(last * Vec::kSamples, c.batch)});
    else
      (*c.body)(Part{first, last, 0, c.batch});
  };
  if (tasks <= 1)
    run(0, &context);
  else
    pool.run(tasks, run, &context);
}

// y = sums · scale + bias for the outputs of one row block.
inline void finish(const Linear& p, int64_t block, int64_t sample, const float* sums) {
  const int64_t row = block * kLanes;
  float* y = p.y + sample * p.out + row;
  for (int64_t lane = 0; lane < kLanes && row + lane < p.out; lane += Vec::kWidth) {
    const int64_t n = std::min<int64_t>(Vec::kWidth, p.out - row - lane);
    Vec::F v = Vec::load(sums + lane);
    if (p.scale != nullptr) v = Vec::mul(v, Vec::load_part(p.scale + row + lane, n));
    if (p.bias != nullptr) v = Vec::add(v, Vec::load_part(p.bias + row + lane, n));
    Vec::store_part(y + lane, n, v);
  }
}

}  // namespace
}  // namespace vq
