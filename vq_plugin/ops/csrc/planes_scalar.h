// Planes in plain C++: an entry is one whole number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "plane_sample.h"

namespace vq {
namespace {

struct Planes : PlaceByPlace<Planes> {
  static constexpr int kStrip = 1;
  static constexpr int kDecoded = 1;  // row blocks together
  static constexpr bool kSideBySide = false;  // tables of places, one by one
  static constexpr bool kInRegisters = false;  // codes of few samples are decoded there
  template <int kBits>
  static constexpr int kSamples = 1;

  template <int kBits>
  static constexpr int64_t kColumnBytes = 8 * 16 * 4;

  template <int kBits>
  static void store_column(const float* tables, float per_unit, const int32_t* offsets,
                           uint8_t* to) {
    for (int i = 0; i < 8 * 16; ++i) {
      // Adding 1.5 · 2^52 leaves no bits below one: to the nearest, ties to even.
      constexpr double kWhole = 6755399441055744.0;
      const float product = tables[i] * per_unit;
      const auto entry = static_cast<int32_t>((double(product) + kWhole) - kWhole) + offsets[i / 16];
      std::memcpy(to + 4 * i, &entry, 4);
    }
  }

  template <int>
  static void decode(const int32_t* codes, int64_t, uint8_t* to) {
    for (int row = 0; row < 16; ++row)
      for (int s = 0; s < 8; ++s)
        to[8 * row + s] = static_cast<uint32_t>(codes[row]) >> (4 * s) & 15;
  }

  template <int kBits, int kBlocks, int kAtOnce>
  static void add(const uint8_t* indices, int64_t columns, const PlaneSample* sample,
                  int64_t row) {
    static_assert(kBlocks == 1 && kAtOnce == 1);
    uint32_t total[16];
    std::fill(total, total + 16, 0 - sample->offset);
    const uint8_t* table = sample->planes;
    for (int64_t c = 0; c < columns; ++c, indices += kIndexBytes, table += kColumnBytes<kBits>) {
      for (int r = 0; r < 16; ++r) {
        for (int i = 0; i < 8; ++i) {
          uint32_t entry;
          std::memcpy(&entry, table + 4 * (16 * i + indices[8 * r + i]), 4);
          total[r] += entry;
        }
      }
    }
    float* sums = sample->sums + row;
    for (int r = 0; r < 16; r += Vec::kWidth) {
      const auto whole = Vec::make(
          [&](int i) { return static_cast<float>(static_cast<int32_t>(total[r + i])); });
      Vec::store(sums + r, Vec::fused(whole, Vec::set1(sample->step), Vec::load(sums + r)));
    }
  }
};

}  // namespace
}  // namespace vq
