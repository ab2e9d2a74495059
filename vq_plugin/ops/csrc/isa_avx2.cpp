#if defined(__x86_64__)
// Before the target: what the standard library defines must run everywhere.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "isa.h"
#include "kernels.h"
#include "packing.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#include "planes_avx2.h"
#include "vec_avx2.h"
//
#include "instantiate.h"

namespace vq {
namespace {

// For an AMD EPYC (Zen 4): from a fit like that of integration/benchmarks/kernel_costs.py, then
// adjusted by hand against integration/benchmarks/linear.py. Those of nibbles along the inputs are for
// an Intel Xeon (Sapphire Rapids), one thread of a busy machine.
constexpr Costs kCosts = {
    {44, 0, 20, 7, 690, 6300},  // lookup_nibbles
    {31, 0, 20, 7, 690, 8000},  // lookup_nibbles_high
    {14, 0, 20, 8, 660, 6500},  // lookup_nibbles_fast
    {44, 0, 0, 38, 0},          // scalar_nibbles
    {18, 0, 0, 34, 0},          // scalar_nibbles_fast
    {0, 33, 52, 63, 1530},      // outward_nibbles
    {250, 0, 130, 1, 26},       // lookup_bytes
    {54, 0, 31, 0, 0},          // lookup_bytes, sixteen
    {35, 0, 0, 273, 35},        // scalar_bytes
    {600, 0, 100, 0, 40},       // outward_bytes
    {141, 0, 50, 0, 40},        // outward_bytes, sixteen
    // Convolutions, exact, high and fast: a little above what the script finds.
    {{30000, 4300, 100, 0, 3600, 5000, 1700},
     {29000, 3700, 220, 0, 2600, 5000, 1300},
     {24000, 1700, 320, 0, 1250, 5000, 600}},
    {20, 250},  // torch's convolutions
};

// The same for another AMD EPYC (Zen 4), of what differs: a fit like that of
// integration/benchmarks/kernel_costs.py on a busy machine; scalar_nibbles as a quiet one takes it.
constexpr Costs kCostsOfAmd = {
    {32, 1, 88, 33, 170},        // lookup_nibbles
    {26, 0, 76, 28, 230, 1300},  // lookup_nibbles_high
    {12, 0, 89, 20, 300},        // lookup_nibbles_fast
    {33, 0, 0, 45, 0},           // scalar_nibbles
    {13, 0, 0, 27, 0},           // scalar_nibbles_fast
    {0, 30, 0, 216, 146},        // outward_nibbles
    kCosts.lookup_bytes,
    kCosts.lookup_bytes_sixteen,
    {36, 0, 0, 350, 0},          // scalar_bytes
    {740, 0, 97, 45, 0},         // outward_bytes
    {136, 0, 19, 69, 0},         // outward_bytes, sixteen
    {kCosts.convolve[0], kCosts.convolve[1], kCosts.convolve[2]},
    kCosts.float_convolution,
};

}  // namespace

extern const Kernels kAvx2OfAmd = common_kernels("avx2", kCostsOfAmd, kFloatLayerOfAmd);
extern const Kernels kAvx2 = common_kernels("avx2", kCosts);

}  // namespace vq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
