#include <algorithm>
#include <limits>
#include <numeric>

#include "fit_book.h"

namespace vq {
namespace {

// What the distances to the centers so far would be with one more.
struct Trial {
  explicit Trial(const Tiles& tiles)
      : nearest(static_cast<size_t>(tiles.tiles * kTile)), sums(static_cast<size_t>(tiles.tiles)) {}

  double total() const { return std::accumulate(sums.begin(), sums.end(), 0.0); }

  std::vector<float> nearest;  // of every point
  std::vector<float> sums;     // of mass · nearest of every tile
};

// The point at part `draw` of the running sum of mass · nearest.
int64_t pick(const Trial& trial, const std::vector<float>& mass, double draw) {
  double left = draw * trial.total();
  const auto tiles = static_cast<int64_t>(trial.sums.size());
  int64_t last = 0;  // the last point that has a part in the sum, should rounding pass the end
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const double sum = trial.sums[static_cast<size_t>(tile)];
    if (sum <= 0) continue;
    const bool here = left < sum;
    for (int64_t i = tile * kTile; i < (tile + 1) * kTile; ++i) {
      const auto at = static_cast<size_t>(i);
      const double part = double(trial.nearest[at]) * mass[at];
      if (part <= 0) continue;
      last = i;
      if (here && left < part) return i;
      if (here) left -= part;
    }
    if (here) return last;
    left -= sum;
  }
  return last;
}

void copy_point(const Points& p, int64_t i, float* to) {
  for (int64_t j = 0; j < p.dim; ++j) to[j] = p.x[i * p.point + j * p.step];
}

}  // namespace

int64_t seed(const FitKernels& kernels, const Points& points, const float* mass, int64_t k,
             const Draws& draws, float* centers) {
  Points plain = points;
  plain.weight = nullptr;
  const std::vector<float> origin(static_cast<size_t>(points.dim));
  const TiledPoints tiled(plain, origin);
  const Tiles tiles = tiled.tiles();
  std::vector<float> weight(static_cast<size_t>(tiled.padded()));
  std::copy_n(mass, points.n, weight.begin());

  Trial now(tiles), next(tiles), best(tiles);
  std::fill(now.nearest.begin(), now.nearest.end(), 1.0f);
  for (size_t i = 0; i < weight.size(); ++i) now.sums[i / kTile] += weight[i];
  copy_point(points, pick(now, weight, draws.first), centers);
  std::fill(best.nearest.begin(), best.nearest.end(), std::numeric_limits<float>::infinity());
  // Points that fill the last tile must not add infinity times zero.
  std::fill(best.nearest.begin() + points.n, best.nearest.end(), 0.0f);
  kernels.closer(tiles, centers, best.nearest.data(), weight.data(), now.nearest.data(),
                 now.sums.data());
  for (int64_t c = 1; c < k; ++c) {
    float* center = centers + c * points.dim;
    if (now.total() <= 0) {
      for (int64_t rest = c; rest < k; ++rest)
        std::copy_n(center - points.dim, points.dim, centers + rest * points.dim);
      return c;
    }
    int64_t chosen = -1;
    double least = std::numeric_limits<double>::infinity();
    for (int64_t t = 0; t < draws.trials; ++t) {
      const int64_t i = pick(now, weight, draws.others[(c - 1) * draws.step + t]);
      copy_point(points, i, center);
      kernels.closer(tiles, center, now.nearest.data(), weight.data(), next.nearest.data(),
                     next.sums.data());
      if (chosen >= 0 && next.total() >= least) continue;
      chosen = i;
      least = next.total();
      std::swap(best, next);
    }
    copy_point(points, chosen, center);
    std::swap(now, best);
  }
  return k;
}

}  // namespace vq
