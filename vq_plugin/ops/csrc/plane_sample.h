// What planes_*.h and planes.h agree on.
#pragma once

#include <cstdint>

namespace vq {
namespace {

constexpr int64_t kPlaneTile = 128;  // subspaces with one step; 16-bit sums hold 256
constexpr int64_t kIndexBytes = 128;  // 16 rows and 8 subspaces, a byte a code
// A plane of bytes, of 8 subspaces: the tables of 0, 2, 4, 6, then of 1, 3, 5, 7.
constexpr int64_t kPlaneBytes = 128;

// Bits of an entry once it is made no less than 0; 24 are a float's own.
constexpr int kExactBits = 24, kHighBits = 16, kFastBits = 8;

// One sample's tables of one tile, and where it sums.
struct PlaneSample {
  const uint8_t* planes;  // `columns` times kColumnBytes<kBits>
  float step;             // of all of them
  uint32_t offset;        // what was added to their entries, of all subspaces together
  float* sums;            // of row 0
};

// One input place's tables of one tile, which every position of a convolution looks up. A step of 0
// is of zeros.
struct PlaneTable {
  const uint8_t* planes;  // `columns` times kColumnBytes<kBits>
  float step;
  uint32_t offset;
};

// A position of a convolution as `Planes` without a way of their own look it up.
template <typename Planes>
struct PlaceByPlace {
  // sums[i · sum_step + row + 16 · kBlocks rows] += what `count` places find at one position of a
  // convolution: place i in tables[sources[i]].
  template <int kBits, int kBlocks>
  static void add_position(const uint8_t* indices, int64_t columns, const PlaneTable* tables,
                           const int32_t* sources, int64_t count, float* sums, int64_t sum_step) {
    for (int64_t i = 0; i < count; ++i, sums += sum_step) {
      const PlaneTable& table = tables[sources[i]];
      if (table.step == 0.0f) continue;
      const PlaneSample sample{table.planes, table.step, table.offset, sums};
      Planes::template add<kBits, kBlocks, 1>(indices, columns, &sample, 0);
    }
  }
};

}  // namespace
}  // namespace vq
