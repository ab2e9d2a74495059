// K-means on single weights.
#pragma once

#include <cstdint>
#include <vector>

#include "fit.h"

namespace vq {

// Which cell a float belongs to. The 65,536 values of its upper 16 bits, in ascending order of the
// floats, each own 2^(16 − shift) cells of equal width, the first of them at `offset`.
constexpr int64_t kCellBins = 1 << 16;
struct CellMap {
  const int32_t* offset;
  const uint8_t* shift;
};

// One more than the last cell; -1 for offsets below 0 or shifts above 16.
int64_t cell_count(const CellMap&);

// Adds mass, and mass · value, to sums[2 · cell] and sums[2 · cell + 1]; mass null: 1 each.
void add_to_cells(const float* values, const float* mass, int64_t n, const CellMap&, double* sums);

// How many of the ascending boundaries, at most 255, are below each value.
void count_below(const FitKernels&, const float* values, int64_t n, const float* boundaries,
                 int64_t count, uint8_t* codes);

// The exact optimum of 1-D k-means; see vq_plugin/fit/optimal.py. Mass and moment: (m + 1);
// starts: (k), 1 <= k <= m.
void optimal_starts(const double* mass, const double* moment, int64_t m, int64_t k,
                    int64_t* starts);

// The centers of that optimum, ascending, for single weights that count alike; k >= 1.
std::vector<double> few_centers(const float* values, int64_t n, int64_t k);

}  // namespace vq
