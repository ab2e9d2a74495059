// The loops over points that every fit spends its time in.
#pragma once

#include "common.h"
#include "fit.h"

namespace vq {
namespace {

// Registers of points side by side: with two centers each, what 16 registers (or 32) hold.
constexpr int kSide = Vec::kWidth == 8 ? 2 : 4;
static_assert(kTile % (kSide * Vec::kWidth) == 0, "a tile is whole registers");

// The lowest score and its center for the points of kSide registers of a tile.
template <bool kWeighted>
inline void nearest_side(const float* x, const float* weight, int64_t dim, const Scores& centers,
                         float* score, float* index) {
  Vec::F best[kSide], at[kSide];
  for (int p = 0; p < kSide; ++p) {
    best[p] = Vec::set1(__builtin_inff());
    at[p] = Vec::zero();
  }
  for (int64_t c = 0; c < centers.k; c += 2) {
    Vec::F sum[2][kSide];
    for (int two = 0; two < 2; ++two)
      for (int p = 0; p < kSide; ++p)
        sum[two][p] = kWeighted ? Vec::zero() : Vec::set1(centers.half[c + two]);
    for (int64_t j = 0; j < dim; ++j) {
      for (int two = 0; two < 2; ++two) {
        const Vec::F minus = Vec::set1(centers.minus[(c + two) * dim + j]);
        for (int p = 0; p < kSide; ++p)
          sum[two][p] = Vec::fused(Vec::load(x + j * kTile + p * Vec::kWidth), minus, sum[two][p]);
        if (!kWeighted) continue;
        const Vec::F half = Vec::set1(centers.half[(c + two) * dim + j]);
        for (int p = 0; p < kSide; ++p)
          sum[two][p] =
              Vec::fused(Vec::load(weight + j * kTile + p * Vec::kWidth), half, sum[two][p]);
      }
    }
    for (int two = 0; two < 2; ++two) {
      const Vec::F lane = Vec::set1(static_cast<float>(c + two));
      for (int p = 0; p < kSide; ++p) {
        at[p] = Vec::select_less(sum[two][p], best[p], lane, at[p]);
        best[p] = Vec::select_less(sum[two][p], best[p], sum[two][p], best[p]);
      }
    }
  }
  for (int p = 0; p < kSide; ++p) {
    Vec::store(score + p * Vec::kWidth, best[p]);
    Vec::store(index + p * Vec::kWidth, at[p]);
  }
}

void nearest(const Tiles& points, const Scores& centers, uint8_t* codes, float* score) {
  float index[kTile];
  for (int64_t tile = 0; tile < points.tiles; ++tile) {
    const int64_t at = tile * points.dim * kTile;
    for (int64_t i = 0; i < kTile; i += kSide * Vec::kWidth) {
      float* to = score + tile * kTile + i;
      if (points.weight == nullptr)
        nearest_side<false>(points.x + at + i, nullptr, points.dim, centers, to, index + i);
      else
        nearest_side<true>(points.x + at + i, points.weight + at + i, points.dim, centers, to,
                           index + i);
    }
    for (int64_t i = 0; i < kTile; ++i)
      codes[tile * kTile + i] = static_cast<uint8_t>(static_cast<int32_t>(index[i]));
  }
}

void closer(const Tiles& points, const float* center, const float* before, const float* mass,
            float* after, float* sums) {
  for (int64_t tile = 0; tile < points.tiles; ++tile) {
    const float* x = points.x + tile * points.dim * kTile;
    // Lane by lane in sixteens: the order of summation must not depend on the registers' width.
    Vec::F sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = Vec::zero();
    for (int64_t first = 0; first < kTile; first += kLanes) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t in_tile = first + v * Vec::kWidth, at = tile * kTile + in_tile;
        Vec::F square = Vec::zero();
        for (int64_t j = 0; j < points.dim; ++j) {
          const Vec::F d = Vec::add(Vec::load(x + j * kTile + in_tile), Vec::set1(-center[j]));
          square = Vec::fused(d, d, square);
        }
        const Vec::F old = Vec::load(before + at);
        square = Vec::select_less(square, old, square, old);
        Vec::store(after + at, square);
        sum[v] = Vec::fused(square, Vec::load(mass + at), sum[v]);
      }
    }
    float lanes[kLanes];
    for (int v = 0; v < kVectors; ++v) Vec::store(lanes + v * Vec::kWidth, sum[v]);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    sums[tile] = lanes[0];
  }
}

// The costs of one register of centers.
inline Vec::F joining(const float* x, const float* weight, const Join& p, int64_t c) {
  Vec::F cost = Vec::zero();
  for (int64_t j = 0; j < p.dim; ++j) {
    const Vec::F d = Vec::add(Vec::load(p.center + j * p.k + c), Vec::set1(-x[j]));
    if (weight == nullptr) {
      cost = Vec::fused(d, d, cost);
      continue;
    }
    const Vec::F w = Vec::set1(weight[j]), mass = Vec::load(p.mass + j * p.k + c);
    cost = Vec::fused(Vec::mul(d, d), Vec::div(Vec::mul(w, mass), Vec::add(w, mass)), cost);
  }
  if (weight == nullptr) cost = Vec::mul(cost, Vec::load(p.mass + c));
  return Vec::add(cost, Vec::load(p.beside + c));
}

Joined cheapest(const float* x, const float* weight, const Join& p) {
  Vec::F best = joining(x, weight, p, 0), at = Vec::zero();
  for (int64_t c = Vec::kWidth; c < p.k; c += Vec::kWidth) {
    const Vec::F cost = joining(x, weight, p, c);
    at = Vec::select_less(cost, best, Vec::set1(static_cast<float>(c)), at);
    best = Vec::select_less(cost, best, cost, best);
  }
  float costs[Vec::kWidth], starts[Vec::kWidth];
  Vec::store(costs, best);
  Vec::store(starts, at);
  Joined joined{static_cast<int64_t>(starts[0]), costs[0]};
  for (int i = 1; i < Vec::kWidth; ++i) {
    const int64_t center = static_cast<int64_t>(starts[i]) + i;
    // Of equal costs the first center's, whatever the width.
    if (costs[i] < joined.cost || (costs[i] == joined.cost && center < joined.center))
      joined = {center, costs[i]};
  }
  return joined;
}

void costs(const float* x, const Join& p, float* cost) {
  for (int64_t c = 0; c < p.k; c += Vec::kWidth) Vec::store(cost + c, joining(x, nullptr, p, c));
}

// kRegisters side by side, as each waits for its own last sum.
template <int kRegisters>
inline void add_products_side(const float* factors, int64_t factor_step, const float* rows,
                              int64_t count, int64_t n, float* sums) {
  Vec::F sum[kRegisters];
  for (int r = 0; r < kRegisters; ++r) sum[r] = Vec::load(sums + r * Vec::kWidth);
  for (int64_t j = 0; j < count; ++j) {
    const Vec::F factor = Vec::set1(factors[j * factor_step]);
    for (int r = 0; r < kRegisters; ++r)
      sum[r] = Vec::fused(factor, Vec::load(rows + j * n + r * Vec::kWidth), sum[r]);
  }
  for (int r = 0; r < kRegisters; ++r) Vec::store(sums + r * Vec::kWidth, sum[r]);
}

void add_products(const float* factors, int64_t factor_step, const float* rows, int64_t count,
                  int64_t n, float* sums) {
  constexpr int kMany = 8;
  int64_t i = 0;
  for (; i + kMany * Vec::kWidth <= n; i += kMany * Vec::kWidth)
    add_products_side<kMany>(factors, factor_step, rows + i, count, n, sums + i);
  for (; i + Vec::kWidth <= n; i += Vec::kWidth)
    add_products_side<1>(factors, factor_step, rows + i, count, n, sums + i);
  if (i == n) return;
  Vec::F sum = Vec::load_part(sums + i, n - i);
  for (int64_t j = 0; j < count; ++j)
    sum = Vec::fused(Vec::set1(factors[j * factor_step]), Vec::load_part(rows + j * n + i, n - i),
                     sum);
  Vec::store_part(sums + i, n - i, sum);
}

inline void count_tile(const float* values, const float* boundaries, int64_t count,
                       uint8_t* codes) {
  const Vec::F one = Vec::set1(1.0f), zero = Vec::zero();
  float counts[kTile];
  for (int64_t i = 0; i < kTile; i += kSide * Vec::kWidth) {
    Vec::F value[kSide], sum[kSide];
    for (int p = 0; p < kSide; ++p) {
      value[p] = Vec::load(values + i + p * Vec::kWidth);
      sum[p] = zero;
    }
    for (int64_t b = 0; b < count; ++b) {
      const Vec::F boundary = Vec::set1(boundaries[b]);
      for (int p = 0; p < kSide; ++p)
        sum[p] = Vec::add(sum[p], Vec::select_less(boundary, value[p], one, zero));
    }
    for (int p = 0; p < kSide; ++p) Vec::store(counts + i + p * Vec::kWidth, sum[p]);
  }
  for (int64_t i = 0; i < kTile; ++i)
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(counts[i]));
}

void count_below(const float* values, int64_t n, const float* boundaries, int64_t count,
                 uint8_t* codes) {
  int64_t i = 0;
  for (; i + kTile <= n; i += kTile) count_tile(values + i, boundaries, count, codes + i);
  if (i == n) return;
  float rest[kTile] = {};
  uint8_t rest_codes[kTile];
  std::copy(values + i, values + n, rest);
  count_tile(rest, boundaries, count, rest_codes);
  std::copy_n(rest_codes, n - i, codes + i);
}

constexpr FitKernels kFit = {nearest, closer, cheapest, costs, add_products, count_below};

}  // namespace
}  // namespace vq
