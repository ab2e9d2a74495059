// Codes chosen step by step, each making up for the error of the others, in plain C++.
#pragma once

#include <cstdint>

#include "fit.h"

namespace vq {

// Some steps of a sweep for some outputs, see vq_plugin/fit/output/sweep.py. A step chooses one
// center, of every stage, for each of its points: `dim` inputs of one output, or one input of `dim`
// outputs.
struct Block {
  int64_t steps, outputs, dim;
  bool along_out;
  int64_t padding;       // last outputs that do not count, along the outputs
  const float* inner;    // (inputs, inputs): how the error of an input counts at those after it
  const float* pull;     // (inputs, outputs): what the errors so far ask of an input
  const float* base;     // (inputs, outputs): what stands there now
  const float* inverse;  // of the metric of every step, (steps, size, size); size: inputs of a step
  const float* factor;   // lower factor of the metric, or null where a step is one input
  int64_t stages, books, k;
  const float* centers;  // (stages, books, k, dim)
  const float* scored;   // the same, times the factor
  // Point p has book step · per_step + (first + p) / rows.
  int64_t per_step, first, rows;
  const uint8_t* before;  // codes of several stages, (stages, steps, points), or null
  const int32_t* kept;    // codes that are not free to choose, otherwise -1; (steps, points) or null

  int64_t size() const { return along_out ? 1 : dim; }
  int64_t inputs() const { return steps * size(); }
  int64_t points() const { return along_out ? outputs / dim : outputs; }
};

// Codes, (stages, steps, points), and base less the centers chosen, (inputs, outputs).
void sweep_block(const FitKernels&, const Block&, uint8_t* codes, float* change);

}  // namespace vq
