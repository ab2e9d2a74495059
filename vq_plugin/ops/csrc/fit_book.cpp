#include "fit_book.h"

#include <algorithm>
#include <limits>

namespace vq {

TiledPoints::TiledPoints(const Points& p, const std::vector<float>& middle)
    : tiles_((p.n + kTile - 1) / kTile), dim_(p.dim) {
  const auto size = static_cast<size_t>(tiles_ * kTile * dim_);
  x_.resize(size);
  if (p.weight != nullptr) weight_.resize(size);
  for (int64_t i = 0; i < p.n; ++i) {
    const int64_t at = i / kTile * dim_ * kTile + i % kTile;
    const float* x = p.x + i * p.point;
    for (int64_t j = 0; j < dim_; ++j)
      x_[static_cast<size_t>(at + j * kTile)] = x[j * p.step] - middle[static_cast<size_t>(j)];
    if (p.weight == nullptr) continue;
    const float* w = p.weight + i * p.weight_point;
    for (int64_t j = 0; j < dim_; ++j) {
      weight_[static_cast<size_t>(at + j * kTile)] = w[j * p.weight_step];
      x_[static_cast<size_t>(at + j * kTile)] *= w[j * p.weight_step];
    }
  }
}

Tiles TiledPoints::tiles() const {
  return {tiles_, dim_, x_.data(), weight_.empty() ? nullptr : weight_.data()};
}

double TiledPoints::norm(int64_t i) const {
  double sum = 0;
  for (int64_t j = 0; j < dim_; ++j) {
    const auto at = static_cast<size_t>((i / kTile * dim_ + j) * kTile + i % kTile);
    const double x = x_[at];
    sum += weight_.empty() ? x * x : x * x / weight_[at];
  }
  return sum;
}

ScoreTable::ScoreTable(int64_t k, int64_t dim, bool weighted)
    : k_(k), dim_(dim), even_(k + k % 2), weighted_(weighted) {
  minus_.assign(static_cast<size_t>(even_ * dim), 0.0f);
  half_.assign(static_cast<size_t>(weighted ? even_ * dim : even_),
               std::numeric_limits<float>::infinity());
}

void ScoreTable::fill(const float* centers, const std::vector<float>& middle) {
  for (int64_t c = 0; c < k_; ++c) {
    float square = 0;
    for (int64_t j = 0; j < dim_; ++j) {
      const auto at = static_cast<size_t>(c * dim_ + j);
      const float v = centers[at] - middle[static_cast<size_t>(j)];
      minus_[at] = -v;
      if (weighted_)
        half_[at] = v * v / 2;
      else
        square += v * v;
    }
    if (!weighted_) half_[static_cast<size_t>(c)] = square / 2;
  }
}

std::vector<float> middle_of(int64_t k, int64_t dim, const float* centers) {
  std::vector<float> middle(static_cast<size_t>(dim)), column(static_cast<size_t>(k));
  for (int64_t j = 0; j < dim; ++j) {
    for (int64_t c = 0; c < k; ++c) column[static_cast<size_t>(c)] = centers[c * dim + j];
    const auto median = column.begin() + k / 2;
    std::nth_element(column.begin(), median, column.end());
    middle[static_cast<size_t>(j)] = *median;
  }
  return middle;
}

}  // namespace vq
