// Sub-vectors along the outputs, up to 256 centers: inputs with the same code are summed first, so
// that each sum, and not each input, is multiplied with its center.
#pragma once

#include "centers.h"
#include "cost.h"
#include "lookup_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kOutwardTile = 16;  // subspaces whose codes lie in one line
constexpr int64_t kAhead = 16;        // rows: each is in a line of its own

inline float input_at(const Linear& p, int64_t sample, int64_t i) {
  const float x = p.x[sample * p.x_row + i * p.x_step];
  return p.scale == nullptr ? x : x * p.scale[i];
}

inline float bias_at(const Linear& p, int64_t i) { return p.bias == nullptr ? 0.0f : p.bias[i]; }

// 0 for kDim times, 1 for kDim times, ...
template <int kDim>
struct Repeated {
  alignas(64) int32_t of[kLanes * kDim] = {};
  constexpr Repeated() {
    for (int i = 0; i < kLanes * kDim; ++i) of[i] = i / kDim;
  }
};

// y[value] += the sum of every center times its values.
template <int kDim>
inline void add_center_values(const float* sums, const float* book, int64_t k, Rounding rounding,
                              float* y) {
  static constexpr Repeated<kDim> kRepeated;
  constexpr int kTotals = std::min(kDim, 4);
  alignas(64) float rest[kLanes * kDim];
  Vec::F totals[kTotals * kVectors];
  for (auto& total : totals) total = Vec::zero();
  for (int64_t c = 0; c < k; c += kLanes) {
    const float* from = sixteen_centers<kDim>(book, k, c, rest);
    const Vec::Table table = Vec::table(sums + c);
    for (int v = 0; v < kDim * kVectors; ++v) {
      const Vec::F sum = Vec::lookup(
          table, Vec::index<0>(Vec::load_codes(kRepeated.of + v * Vec::kWidth)));
      Vec::F& total = totals[v % (kTotals * kVectors)];
      total = Vec::fmadd(sum, rounded(Vec::load(from + v * Vec::kWidth), rounding), total);
    }
  }
  alignas(64) float lanes[kTotals * kLanes];
  for (int v = 0; v < kTotals * kVectors; ++v) Vec::store(lanes + v * Vec::kWidth, totals[v]);
  for (int64_t i = kDim; i < kTotals * kLanes; ++i) lanes[i % kDim] += lanes[i];
  for (int64_t j = 0; j < kDim; ++j) y[j] += lanes[j];
}

// Whether it has done so.
inline bool add_own_book(const Books& books, int64_t stage, int64_t s, const float* sums,
                         float* y) {
  if (!together(books)) return false;
  const float* book = book_at(books, stage, s);
  if (books.dim == 2)
    add_center_values<2>(sums, book, books.k, books.rounding, y);
  else if (books.dim == 4)
    add_center_values<4>(sums, book, books.k, books.rounding, y);
  else if (books.dim == 8)
    add_center_values<8>(sums, book, books.k, books.rounding, y);
  else
    return false;
  return true;
}

inline void outward_bytes_one_sample(const Linear& p, int64_t first, int64_t last, int64_t sample) {
  struct Inputs;
  struct Sums;
  struct Book;
  struct Outputs;
  const int64_t dim = p.books.dim, n = last - first;
  float* x = scratch<Inputs, float>(p.in);
  float* sums = scratch<Sums, float>(kOutwardTile * kByteCenters);
  float* book = scratch<Book, float>(dim * kByteCenters);
  float* y = scratch<Outputs, float>(kOutwardTile * dim);
  for (int64_t i = 0; i < p.in; ++i) x[i] = input_at(p, sample, i);
  std::fill(y, y + n * dim, 0.0f);
  for (int64_t stage = 0; stage < p.books.stages; ++stage) {
    const auto* codes = static_cast<const uint8_t*>(p.codes) + stage * p.rows * p.subspaces + first;
    std::fill(sums, sums + n * kByteCenters, 0.0f);
    for (int64_t i = 0; i < p.in; ++i, codes += p.subspaces) {
      __builtin_prefetch(codes + kAhead * p.subspaces);
      const float value = x[i];  // no sum is in its place
      for (int64_t s = 0; s < n; ++s) sums[s * kByteCenters + codes[s]] += value;
    }
    for (int64_t s = 0; s < n; ++s) {
      if (add_own_book(p.books, stage, first + s, sums + s * kByteCenters, y + s * dim)) continue;
      load_book(p.books, stage, 0, first + s, book, kByteCenters);
      for (int64_t j = 0; j < dim; ++j) {
        Vec::F total = Vec::zero();
        for (int64_t c = 0; c < padded(p.books.k); c += Vec::kWidth)
          total = Vec::fmadd(Vec::load(sums + s * kByteCenters + c),
                             Vec::load(book + j * kByteCenters + c), total);
        y[s * dim + j] += Vec::sum(total);
      }
    }
  }
  const int64_t at = first * dim, outputs = std::min(n * dim, p.out - at);
  for (int64_t j = 0; j < outputs; ++j) p.y[sample * p.out + at + j] = y[j] + bias_at(p, at + j);
}

// y[value][sample] += the sums of every center, [center][sample], times its values.
inline void add_centers(const float* sums, const Centers& book, int64_t k, int64_t dim, float* y) {
  constexpr int kValues = 8 / kVectors;
  for (int64_t at = 0; at < dim; at += kValues, y += kValues * kLanes) {
    const int64_t values = std::min<int64_t>(kValues, dim - at);
    Vec::F total[kValues][kVectors];
    for (int j = 0; j < kValues; ++j)
      for (int v = 0; v < kVectors; ++v)
        total[j][v] = j < values ? Vec::load(y + j * kLanes + v * Vec::kWidth) : Vec::zero();
    for (int64_t c = 0; c < k; ++c) {
      const float* center = book.data + c * book.center_step + at * book.value_step;
      for (int j = 0; j < kValues; ++j)
        for (int v = 0; v < kVectors; ++v)
          // Past the last value, the first one, which is dropped.
          total[j][v] = Vec::fmadd(Vec::load(sums + c * kLanes + v * Vec::kWidth),
                                   Vec::set1(center[j < values ? j * book.value_step : 0]),
                                   total[j][v]);
    }
    for (int j = 0; j < kValues; ++j)
      for (int v = 0; v < kVectors && j < values; ++v)
        Vec::store(y + j * kLanes + v * Vec::kWidth, total[j][v]);
  }
}

inline void add_sample_lanes(float* sums, const float* x) {
  for (int v = 0; v < kVectors; ++v)
    Vec::store(sums + v * Vec::kWidth,
               Vec::add(Vec::load(sums + v * Vec::kWidth), Vec::load(x + v * Vec::kWidth)));
}

// x[input][sample], kLanes samples side by side.
inline void gather_sample_lanes(const Linear& p, int64_t sample, int64_t samples, float* x) {
  for (int64_t i = 0; i < p.in; ++i)
    for (int64_t b = 0; b < kLanes; ++b)
      x[i * kLanes + b] = b < samples ? input_at(p, sample + b, i) : 0.0f;
}

inline void store_sample_lanes(const Linear& p, int64_t sample, int64_t samples, int64_t at,
                               int64_t outputs, const float* y) {
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t j = 0; j < outputs; ++j)
      p.y[(sample + b) * p.out + at + j] = y[j * kLanes + b] + bias_at(p, at + j);
}

inline void outward_bytes_samples(const Linear& p, int64_t first, int64_t last, int64_t sample,
                                  int64_t samples, const float* x) {
  struct Sums;
  struct Book;
  struct Outputs;
  constexpr int64_t at_once = 2;  // subspaces whose sums stay in the nearest cache
  const int64_t dim = p.books.dim;
  float* sums = scratch<Sums, float>(at_once * kByteCenters * kLanes);
  float* book = scratch<Book, float>(dim * kByteCenters);
  float* y = scratch<Outputs, float>(at_once * dim * kLanes);
  for (int64_t s = first; s < last; s += at_once) {
    const int64_t n = std::min(at_once, last - s);
    std::fill(y, y + n * dim * kLanes, 0.0f);
    for (int64_t stage = 0; stage < p.books.stages; ++stage) {
      const auto* codes = static_cast<const uint8_t*>(p.codes) + stage * p.rows * p.subspaces + s;
      std::fill(sums, sums + n * kByteCenters * kLanes, 0.0f);
      for (int64_t i = 0; i < p.in; ++i, codes += p.subspaces)
        for (int64_t t = 0; t < n; ++t)
          add_sample_lanes(sums + (t * kByteCenters + codes[t]) * kLanes, x + i * kLanes);
      for (int64_t t = 0; t < n; ++t) {
        add_centers(sums + t * kByteCenters * kLanes, centers_of(p.books, stage, s + t, book),
                    p.books.k, dim, y + t * dim * kLanes);
      }
    }
    store_sample_lanes(p, sample, samples, s * dim, std::min(n * dim, p.out - s * dim), y);
  }
}

void outward_bytes(const Linear& p, const Pool& pool) {
  const int64_t blocks = div_up(p.subspaces, kOutwardTile);
  divide(pool, blocks, p.batch, p.picoseconds, [&](const Part& part) {
    struct Inputs;
    const int64_t first = part.first * kOutwardTile;
    const int64_t last = std::min(part.last * kOutwardTile, p.subspaces);
    for (int64_t b = part.first_sample; b < part.last_sample;) {
      const int64_t samples = std::min(kLanes, part.last_sample - b);
      // By the whole batch: a sample's sum must not depend on how the work is cut.
      if (p.batch < kFewSamples) {
        for (int64_t s = first; s < last; s += kOutwardTile)
          outward_bytes_one_sample(p, s, std::min(s + kOutwardTile, last), b);
        ++b;
      } else {
        float* x = scratch<Inputs, float>(p.in * kLanes);
        gather_sample_lanes(p, b, samples, x);
        outward_bytes_samples(p, first, last, b, samples, x);
        b += samples;
      }
    }
  });
}

}  // namespace
}  // namespace vq
