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
#pragma clang attribute push(                                                                    \
    __attribute__((                                                                              \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2")
#endif

#include "planes_avx512.h"
#include "vec_avx512.h"
//
#include "instantiate.h"

namespace vq {
namespace {

// For an AMD EPYC (Zen 4): from a fit like that of integration/benchmarks/kernel_costs.py, then
// adjusted by hand against integration/benchmarks/linear.py. Those of lookup_nibbles are for an
// Intel Xeon (Sapphire Rapids), one thread of a busy machine.
constexpr Costs kCosts = {
    {22, 0, 10, 3, 570, 5700},  // lookup_nibbles
    {14, 0, 20, 3, 570, 6500},  // lookup_nibbles_high
    {7, 0, 10, 5, 540, 7500},   // lookup_nibbles_fast
    {22, 0, 0, 11, 0},          // scalar_nibbles
    {6, 0, 0, 10, 40},          // scalar_nibbles_fast
    {0, 23, 117, 29, 290},      // outward_nibbles
    {270, 0, 95, 3, 26},        // lookup_bytes
    {50, 0, 29, 0, 0},          // lookup_bytes, sixteen
    {22, 0, 0, 82, 43},         // scalar_bytes
    {600, 0, 60, 0, 40},        // outward_bytes
    {140, 0, 25, 0, 40},        // outward_bytes, sixteen
    // Convolutions, exact, high and fast.
    {{115000, 1300, 380, 1850, 2170, 11000, 100},
     {112000, 3200, 300, 1900, 1380, 16000, 100},
     {107000, 1400, 410, 1520, 690, 16000, 100}},
    {12, 330},  // torch's convolutions
};

// The same, as integration/benchmarks/kernel_costs.py finds it, for another AMD EPYC (Zen).
constexpr Costs kCostsOfAmd = {
    {19, 0, 17, 11, 105, 3527},  // lookup_nibbles
    {13, 0, 17, 11, 118, 5457},  // lookup_nibbles_high
    {7, 0, 16, 13, 105, 4538},   // lookup_nibbles_fast
    {19, 0, 0, 9, 155},          // scalar_nibbles
    {5, 0, 0, 2, 323},           // scalar_nibbles_fast
    {13, 16, 97, 27, 400},       // outward_nibbles
    {289, 0, 98, 0, 11, 21754},  // lookup_bytes
    {50, 1, 25, 0, 0},           // lookup_bytes, sixteen
    {21, 0, 0, 93, 6},           // scalar_bytes
    {592, 0, 46, 0, 18, 65437},  // outward_bytes
    {121, 0, 27, 0, 0},          // outward_bytes, sixteen
    // Convolutions, exact, high and fast: a little above what it finds; torch's a little below.
    {{30000, 1700, 220, 0, 2950, 5000, 410},
     {28000, 1900, 140, 0, 2270, 5000, 260},
     {27000, 1100, 300, 0, 1240, 5000, 50}},
    {18, 300},
};

// Of the same Xeon, whose float32 products are twice as fast as with AVX2; of few samples in layers that
// fit a cache, what both machines are sure to take.
constexpr FloatCost kFloatLayer = {75, 125, 100, 300, 13, 4};

}  // namespace

extern const Kernels kAvx512OfAmd = common_kernels("avx512", kCostsOfAmd, kFloatLayerOfAmd);
extern const Kernels kAvx512 = common_kernels("avx512", kCosts, kFloatLayer);

}  // namespace vq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
