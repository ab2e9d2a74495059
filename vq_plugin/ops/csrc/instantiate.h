// The function table of one instruction set; included last, inside its target.
#pragma once

#include "convolve_nibbles.h"
#include "decode.h"
#include "digest.h"
#include "fit_kernels.h"
#include "look_up.h"
#include "lookup_bytes.h"
#include "lookup_nibbles.h"
#include "outward_bytes.h"
#include "outward_nibbles.h"
#include "scalar_bytes.h"
#include "scalar_nibbles.h"
#include "scalar_nibbles_fast.h"

namespace vq {
namespace {

// The kernels of every instruction set with their costs, in the order of Kernels.
struct Costs {
  Cost lookup_nibbles, lookup_nibbles_high, lookup_nibbles_fast, scalar_nibbles,
      scalar_nibbles_fast, outward_nibbles, lookup_bytes, lookup_bytes_sixteen, scalar_bytes,
      outward_bytes, outward_bytes_sixteen;
  ConvolutionCost convolve[3];
  FloatConvolutionCost float_convolution;
};

// Of an AMD EPYC (Zen 4), on which torch's float32 products of some samples take longer; a little below
// all of those that integration/benchmarks/never_slower.py timed.
constexpr FloatCost kFloatLayerOfAmd = {78, 125, 155, 230, 17.5, 3};

constexpr Kernels common_kernels(const char* name, const Costs& costs,
                                 const FloatCost& float_layer = {}) {
  Kernels kernels{};
  kernels.name = name;
  kernels.float_layer = float_layer;
  kernels.lookup_nibbles = {"lookup_nibbles", lookup_nibbles<kExactBits>, costs.lookup_nibbles, {}};
  kernels.lookup_nibbles_high = {"lookup_nibbles_high", lookup_nibbles<kHighBits>,
                                 costs.lookup_nibbles_high, {}};
  kernels.lookup_nibbles_fast = {"lookup_nibbles_fast", lookup_nibbles<kFastBits>,
                                 costs.lookup_nibbles_fast, {}};
  kernels.scalar_nibbles = {"scalar_nibbles", scalar_nibbles, costs.scalar_nibbles, {}};
  kernels.scalar_nibbles_fast = {"scalar_nibbles_fast", scalar_nibbles_fast,
                                 costs.scalar_nibbles_fast, {}};
  kernels.outward_nibbles = {"outward_nibbles", outward_nibbles, costs.outward_nibbles, {}};
  kernels.lookup_bytes = {"lookup_bytes", lookup_bytes, costs.lookup_bytes,
                          costs.lookup_bytes_sixteen};
  kernels.scalar_bytes = {"scalar_bytes", scalar_bytes, costs.scalar_bytes, {}};
  kernels.outward_bytes = {"outward_bytes", outward_bytes, costs.outward_bytes,
                           costs.outward_bytes_sixteen};
  kernels.transpose = transpose;
  kernels.digest = digest;
  kernels.round = round_all;
  kernels.decode = decode;
  kernels.look_up = look_up;
  kernels.convolve[0] = {"convolve", convolve_nibbles<kExactBits>, costs.convolve[0]};
  kernels.convolve[1] = {"convolve_high", convolve_nibbles<kHighBits>, costs.convolve[1]};
  kernels.convolve[2] = {"convolve_fast", convolve_nibbles<kFastBits>, costs.convolve[2]};
  kernels.float_convolution = costs.float_convolution;
  kernels.fit = &kFit;
  return kernels;
}

}  // namespace
}  // namespace vq
