// A book's points as k-means goes through them again and again.
#pragma once

#include <cstdint>
#include <vector>

#include "fit.h"

namespace vq {

// Tiles for the assignment, relative to `middle`; squares and products round less near zero.
class TiledPoints {
 public:
  TiledPoints(const Points& points, const std::vector<float>& middle);

  Tiles tiles() const;
  // Room for a value of every point, whole tiles.
  int64_t padded() const { return tiles_ * kTile; }
  // Σ_j w·x² of point i.
  double norm(int64_t i) const;

 private:
  int64_t tiles_, dim_;
  std::vector<float> x_, weight_;
};

// Centers as the assignment reads them, relative to `middle`.
class ScoreTable {
 public:
  ScoreTable(int64_t k, int64_t dim, bool weighted);
  void fill(const float* centers, const std::vector<float>& middle);
  Scores scores() const { return {even_, minus_.data(), half_.data()}; }

 private:
  int64_t k_, dim_, even_;
  bool weighted_;
  std::vector<float> minus_, half_;
};

// The median center, coordinate by coordinate: a single outlier does not move it.
std::vector<float> middle_of(int64_t k, int64_t dim, const float* centers);

}  // namespace vq
