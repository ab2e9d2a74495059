#include "isa.h"
#include "vec_scalar.h"
//
#include "planes_scalar.h"
//
#include "instantiate.h"

namespace vq {
namespace {

// For an AMD EPYC (Zen 4): from a fit like that of integration/benchmarks/kernel_costs.py, then
// adjusted by hand against integration/benchmarks/linear.py.
constexpr Costs kCosts = {
    {600, 0, 3500, 340, 3600},  // lookup_nibbles
    {600, 0, 3500, 340, 3600},  // lookup_nibbles_high
    {600, 0, 3500, 340, 3600},  // lookup_nibbles_fast
    {475, 0, 0, 0, 310},      // scalar_nibbles
    {700, 0, 0, 300, 0},      // scalar_nibbles_fast
    {0, 6114, 5374, 0, 137},  // outward_nibbles
    {115, 0, 2100, 5, 5000},  // lookup_bytes
    {115, 0, 270, 0, 5000},   // lookup_bytes, sixteen
    {282, 0, 0, 296, 0},      // scalar_bytes
    {654, 0, 1720, 0, 5000},  // outward_bytes
    {120, 0, 400, 0, 5000},   // outward_bytes, sixteen
    // Convolutions, exact, high and fast.
    {{110000, 40000, 5000, 40000, 400000, 150000, 1000},
     {110000, 40000, 5000, 40000, 400000, 150000, 1000},
     {110000, 40000, 5000, 40000, 400000, 150000, 1000}},
    {12, 330},  // torch's convolutions, which take the widest registers there are
};

}  // namespace

extern const Kernels kScalar = common_kernels("scalar", kCosts);

}  // namespace vq
