// Whether a convolution on codes is faster than the float layer that it replaces.
#pragma once

#include "kernels.h"
#include "packing.h"

namespace vq {

// What decides how long a convolution takes.
struct ConvolutionShape {
  int64_t images, inputs, places;  // of an image, of an output
  int64_t in, out, groups;
  int64_t positions, stages, k, dim;
  bool shared;  // one codebook for all pieces of a position
};

// About how long a kernel takes on one thread.
inline double picoseconds(const ConvolutionCost& cost, const ConvolutionShape& s) {
  constexpr double kCall = 12e6;  // more than a call of torch's
  const double pieces = double(div_up(s.in / s.groups, s.dim));
  const double columns = double(div_up(static_cast<int64_t>(pieces), kNibbles));
  const double blocks = double(div_up(s.out / s.groups, kLanes));
  const double tables = double(s.inputs) * (pieces * (cost.table + double(s.dim) * cost.value) +
                                            cost.input);
  const double lookups =
      double(s.places) * double(s.positions) * (blocks * (columns * cost.column + cost.block));
  const double outputs = double(s.places) * double(s.out) * cost.output;
  const double codes = columns * double(s.positions) * blocks * cost.decode;
  return kCall + double(s.images) * (double(s.groups) * double(s.stages) *
                                         (tables + lookups + codes) + outputs);
}

// The same of a layer with a kept weight in torch. At every pass codebooks are compared with those
// that the weight was decoded from.
inline double float_picoseconds(const FloatConvolutionCost& cost, const ConvolutionShape& s) {
  constexpr double kPass = 5e6, kCompare = 100;
  const double books = s.shared ? 1.0 : double(div_up(s.in / s.groups, s.dim));
  const double products = double(s.images) * double(s.places) * double(s.out) *
                          double(s.in / s.groups) * double(s.positions);
  const double weights = double(s.out) * double(s.in / s.groups) * double(s.positions);
  return kPass + double(s.stages) * books * double(s.k * s.dim) * kCompare +
         products * cost.product + weights * cost.weight;
}

}  // namespace vq
