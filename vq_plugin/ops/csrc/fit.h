// K-means in plain C++: what the fits of vq_plugin compute, one book at a time and on one thread.
#pragma once

#include <cstdint>

namespace vq {

// Codes are bytes.
constexpr int64_t kMostCenters = 256;

// Points of one book, anywhere in memory; distances in floats.
struct Points {
  int64_t n, dim;
  const float* x;
  int64_t point, step;  // from a point to the next, from a coordinate to the next
  const float* weight;  // importance of every coordinate, or null
  int64_t weight_point, weight_step;
};

// Points side by side: coordinate j of point i is at ((i / kTile) · dim + j) · kTile + i % kTile.
constexpr int64_t kTile = 64;
struct Tiles {
  int64_t tiles, dim;
  const float* x;       // weight · x where there is a weight; filled up with zeros
  const float* weight;  // laid out alike, or null
};

// Half the weighted squared distance of a point and center c, less what does not depend on c, is
// Σ_j x_j · minus[c · dim + j] + half[c], or, weighted, + weight_j · half[c · dim + j] in the sum.
struct Scores {
  int64_t k;  // even: filled up with centers at infinity
  const float* minus;
  const float* half;
};

// What joining each center would cost a point; coordinate j of center c is at j · k + c.
struct Join {
  int64_t k, dim;  // k: a multiple of kJoinLanes
  const float* center;
  const float* mass;  // M_c / (M_c + 1) for each center, or, weighted, M laid out like the centers
  const float* beside;  // added to the cost: infinite for centers that are out of question
};
constexpr int64_t kJoinLanes = 16;

struct Joined {
  int64_t center;
  float cost;
};

// What is compiled for every instruction set.
struct FitKernels {
  // The lowest score of every point of all tiles and its center.
  void (*nearest)(const Tiles&, const Scores&, uint8_t* codes, float* score);
  // min(|x − center|², before) of every point, and its sum weighted by mass for each tile.
  void (*closer)(const Tiles&, const float* center, const float* before, const float* mass,
                 float* after, float* sums);
  // The center that costs least: Σ_j M/(M + w) · w · (x − c)²; w is 1 where weight is null.
  Joined (*cheapest)(const float* x, const float* weight, const Join&);
  // The cost of every center of a point without weight.
  void (*costs)(const float* x, const Join&, float* cost);
  // sums[i] += Σ_j factors[j · factor_step] · rows[j · n + i], in the order of j.
  void (*add_products)(const float* factors, int64_t factor_step, const float* rows, int64_t count,
                       int64_t n, float* sums);
  // How many of the boundaries, a few, are below each value.
  void (*count_below)(const float* values, int64_t n, const float* boundaries, int64_t count,
                      uint8_t* codes);
};

// Codes and weighted squared distances; centers (k, dim).
void assign(const FitKernels&, const Points&, int64_t k, const float* centers, uint8_t* codes,
            float* distance);

// Sums of weight · x and of the weight by code, (k, dim); without a weight the mass is (k).
void sum_by_code(const Points&, const uint8_t* codes, int64_t k, double* sums, double* mass);

// Lloyd's iterations until the error falls by less than tolerance, then a last assignment. Centers
// without points move to the worst points. Centers (k, dim) are read and replaced.
void lloyd(const FitKernels&, const Points&, int64_t k, int iterations, double tolerance,
           float* centers, uint8_t* codes);

// Numbers in [0, 1) that draw points: one for the first center, `trials` for each of the others.
struct Draws {
  double first;
  const double* others;
  int64_t step;  // from the numbers of a center to those of the next
  int64_t trials;
};

// Greedy k-means++. Returns how many distinct centers it found; the rest of (k, dim) repeats the
// last one. Mass: of every point, (n).
int64_t seed(const FitKernels&, const Points&, const float* mass, int64_t k, const Draws&,
             float* centers);

// Hartigan's exchange: changes codes where that lowers the error with both means moved along.
void exchange(const FitKernels&, const Points&, int64_t k, int sweeps, uint8_t* codes);

}  // namespace vq
