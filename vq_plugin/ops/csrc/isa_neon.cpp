#if defined(__aarch64__)
#include "isa.h"
#include "planes_neon.h"
#include "vec_neon.h"
//
#include "instantiate.h"

namespace vq {
namespace {

// Estimates: twice the costs of AVX2, whose registers are twice as wide.
constexpr Costs kCosts = {
    {88, 0, 40, 14, 1380, 12600},  // lookup_nibbles
    {62, 0, 40, 14, 1380, 16000},  // lookup_nibbles_high
    {28, 0, 40, 16, 1320, 13000},  // lookup_nibbles_fast
    {62, 0, 0, 76, 0},             // scalar_nibbles
    {36, 0, 0, 80, 0},             // scalar_nibbles_fast
    {0, 66, 104, 126, 3060},       // outward_nibbles
    {500, 0, 260, 2, 52},          // lookup_bytes
    {108, 0, 62, 0, 0},            // lookup_bytes, sixteen
    {70, 0, 0, 546, 70},           // scalar_bytes
    {1200, 0, 200, 0, 80},         // outward_bytes
    {282, 0, 100, 0, 80},          // outward_bytes, sixteen
    // Convolutions, exact, high and fast.
    {{250000, 5400, 1760, 11800, 9200, 14000, 200},
     {270000, 5200, 1600, 11600, 6000, 14000, 200},
     {180000, 5600, 1640, 6000, 2600, 24000, 200}},
    {40, 500},  // torch's convolutions
};

}  // namespace

extern const Kernels kNeon = common_kernels("neon", kCosts);

}  // namespace vq
#endif
