#include "isa.h"
#include "vec_scalar.h"
//
#include "planes_scalar.h"
//
#include "instantiate.h"

namespace vq {
namespace {

// For an AMD EPYC (Zen 4), as integration/benchmarks/kernel_costs.py has them.
constexpr Costs kCosts = {
    {345, 0, 1900, 620, 4300, 81000},   // lookup_nibbles
    {315, 2, 1850, 660, 4000, 108000},  // lookup_nibbles_high
    {330, 0, 2000, 640, 4300, 88000},   // lookup_nibbles_fast
    {535, 0, 450, 0, 0},                // scalar_nibbles
    {1240, 0, 345, 30, 0},              // scalar_nibbles_fast
    {0, 6140, 5960, 100, 2240},         // outward_nibbles
    {360, 37, 10, 0, 1900},             // lookup_bytes
    {176, 0, 115, 0, 4300},             // lookup_bytes, sixteen
    {295, 0, 0, 360, 0},                // scalar_bytes
    {730, 0, 1500, 30, 0},              // outward_bytes
    {168, 0, 510, 115, 0},              // outward_bytes, sixteen
    // Convolutions, exact, high and fast.
    {{110000, 40000, 5000, 40000, 400000, 150000, 1000},
     {110000, 40000, 5000, 40000, 400000, 150000, 1000},
     {110000, 40000, 5000, 40000, 400000, 150000, 1000}},
    {12, 330},  // torch's convolutions, which take the widest registers there are
};

// What products in float32 are sure to take on any machine: the least of those of isa_avx512.cpp.
constexpr FloatCost kFloatLayer = {75, 125, 100, 230, 13, 3};

}  // namespace

extern const Kernels kScalar = common_kernels("scalar", kCosts, kFloatLayer);

}  // namespace vq
