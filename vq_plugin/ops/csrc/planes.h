// Look-ups of table entries as integers, exact on every instruction set.
//
// The products of a sample's pieces with their centers, of some subspaces (a tile), become integers
// with one step: entry ≈ step · integer. Registers choose among 16 bytes, so the integers are cut
// into planes of few bits each and looked up plane by plane; sums of integers are exact, and become
// one float multiply-add at the end of the tile. How integers are cut is up to the instruction set
// (planes_*.h): their sum, and so every output, is the same bits on all of them.
//
// Nothing here knows of layers. A strip of row blocks is decoded once (decode_strip) and then looked
// up by any number of samples (add_planes), each in its own tables.
#pragma once

#include "common.h"
#include "plane_sample.h"

namespace vq {
namespace {

// Between what the entries of each subspace lie, and the sum of all entries' squares, which is not
// finite where an entry is not. In one order everywhere.
struct Spread {
  float low[kPlaneTile], range[kPlaneTile];
  float largest, squares;  // largest |entry|
};

// Neighbours first: in the same order on every instruction set.
inline float sum_of(Vec::F* values) {
  for (int count = kVectors / 2; count > 0; count /= 2)
    for (int i = 0; i < count; ++i)
      values[i] = Vec::add(Vec::even(values[2 * i], values[2 * i + 1]),
                           Vec::odd(values[2 * i], values[2 * i + 1]));
  for (int lanes = Vec::kWidth; lanes > 1; lanes /= 2)
    values[0] = Vec::add(Vec::even(values[0], values[0]), Vec::odd(values[0], values[0]));
  float lanes[Vec::kWidth];
  Vec::store(lanes, values[0]);
  return lanes[0];
}

inline float largest_of(Vec::F values) {
  for (int lanes = Vec::kWidth; lanes > 1; lanes /= 2)
    values = Vec::max(Vec::even(values, values), Vec::odd(values, values));
  float lanes[Vec::kWidth];
  Vec::store(lanes, values);
  return lanes[0];
}

// Of a tile's tables, (subspaces, 16), with zeros up to a multiple of 16 subspaces; `low` and
// `range` of fewer than a float's bits alone.
template <int kBits>
inline void find_spread(const float* tables, int64_t subspaces, Spread* spread) {
  static_assert(kPlaneTile % kLanes == 0);
  Vec::F squares[2 * kVectors];  // of even and odd subspaces
  for (Vec::F& sum : squares) sum = Vec::zero();
  Vec::F lowest = Vec::zero(), highest = Vec::zero();
  for (int64_t s = 0; s < subspaces; s += Vec::kWidth) {
    Vec::F low[Vec::kWidth], high[Vec::kWidth];
    for (int i = 0; i < Vec::kWidth; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        const Vec::F value = Vec::load(tables + (s + i) * kLanes + v * Vec::kWidth);
        if constexpr (kBits == kExactBits) {
          lowest = Vec::min(lowest, value);
          highest = Vec::max(highest, value);
        } else {
          low[i] = v == 0 ? value : Vec::min(low[i], value);
          high[i] = v == 0 ? value : Vec::max(high[i], value);
        }
        Vec::F& sum = squares[i % 2 * kVectors + v];
        sum = Vec::fused(value, value, sum);
      }
    }
    if constexpr (kBits != kExactBits) {
      // Of pairs of neighbours, until a register holds one value of each subspace.
      for (int count = Vec::kWidth / 2; count > 0; count /= 2) {
        for (int i = 0; i < count; ++i) {
          low[i] = Vec::min(Vec::even(low[2 * i], low[2 * i + 1]),
                            Vec::odd(low[2 * i], low[2 * i + 1]));
          high[i] = Vec::max(Vec::even(high[2 * i], high[2 * i + 1]),
                             Vec::odd(high[2 * i], high[2 * i + 1]));
        }
      }
      lowest = Vec::min(lowest, low[0]);
      highest = Vec::max(highest, high[0]);
      Vec::store(spread->low + s, low[0]);
      Vec::store(spread->range + s, Vec::add(high[0], Vec::mul(low[0], Vec::set1(-1.0f))));
    }
  }
  for (int v = 0; v < kVectors; ++v) squares[v] = Vec::add(squares[v], squares[kVectors + v]);
  spread->squares = sum_of(squares);
  spread->largest = largest_of(Vec::max(Vec::mul(lowest, Vec::set1(-1.0f)), highest));
}

// The largest sum of the ranges of subspaces whose bytes are added before they are widened: of
// 8 bits two subspaces; of 16 the eight of two columns that one half of a register holds.
template <int kBits>
inline float most_together(const float* range, int64_t subspaces) {
  float r = 0;
  if (kBits == kFastBits) {
    Vec::F pairs = Vec::zero();
    for (int64_t s = 0; s < subspaces; s += Vec::kWidth) {
      const Vec::F each = Vec::load(range + s);
      pairs = Vec::max(pairs, Vec::add(Vec::even(each, each), Vec::odd(each, each)));
    }
    return largest_of(pairs);
  } else {
    const auto four = [&](int64_t s) {
      return (range[s] + range[s + 1]) + (range[s + 4] + range[s + 5]);
    };
    for (int64_t s = 0; s < subspaces; s += 2 * kNibbles)
      for (int64_t half = 0; half < 4; half += 2)
        r = std::max(r, four(s + half) + four(s + half + kNibbles));
  }
  return r;
}

// What entries are multiplied with to become integers; its inverse is the step. Less the error of
// rounding, integers of 24 bits are at most 2^23; of fewer bits each lies in a range of its bits,
// those that are added together in one of a byte (8 bits), or of a byte above 10 others (16), and
// all below 2^22, so that 32 bits hold their sum.
constexpr float kExact = 8388600.0f, kSize = 4.0e6f, kHigh = 65532.0f, kHighTogether = 262100.0f,
                kFastTogether = 252.9f;
template <int kBits>
inline float entries_per_unit(const Spread& spread, int64_t subspaces) {
  if (kBits == kExactBits) return kExact / spread.largest;
  const float together = most_together<kBits>(spread.range, subspaces);
  const float size = kSize / spread.largest;
  if (kBits == kFastBits) return std::min(size, kFastTogether / together);
  const float widest = *std::max_element(spread.range, spread.range + subspaces);
  return std::min(size, std::min(kHigh / widest, kHighTogether / together));
}

// Whether integers of one step are as good as floats for n entries: finite, neither so large nor so
// small that their squares are not, and the largest at most kPeak times the root of the mean square.
// All zeros are as good, too.
template <int kBits>
inline bool fits_planes(float largest, float squares, int64_t n) {
  constexpr float kPeak = kBits == kFastBits ? 20.0f : 10.0f, kSmall = 1e-18f, kLarge = 1e36f;
  if (squares == 0.0f) return largest == 0.0f;
  if (!(squares < kLarge && largest > kSmall)) return false;
  return largest * largest * static_cast<float>(n) <= kPeak * kPeak * squares;
}

constexpr float kWhole = 12582912.0f;  // adding 1.5 · 2^23 rounds as conversions to integers do

// Tables of `columns` times 8 subspaces, each no lower than `low` -> integers in planes,
// kColumnBytes<kBits> a column. Returns what was added to them together, so that none is below 0.
template <int kBits>
inline uint32_t store_planes(const float* tables, int64_t columns, const float* low,
                             float per_unit, uint8_t* to) {
  uint32_t sum = 0;
  for (int64_t c = 0; c < columns; ++c) {
    int32_t offsets[kNibbles];
    for (int64_t s = 0; s < kNibbles; ++s) {
      offsets[s] = kBits == kExactBits ? 1 << (kBits - 1)
                                       : -static_cast<int32_t>(
                                             (low[c * kNibbles + s] * per_unit + kWhole) - kWhole);
      sum += static_cast<uint32_t>(offsets[s]);
    }
    Planes::store_column<kBits>(tables + c * kNibbles * kLanes, per_unit, offsets,
                                to + c * Planes::kColumnBytes<kBits>);
  }
  return sum;
}

// The codes of kBlocks row blocks and `columns` times 8 subspaces, as indices into the planes:
// columns · kBlocks · kIndexBytes at `to`, all row blocks of a column one after another.
template <int kBlocks>
inline void decode_strip(const int32_t* codes, int64_t row_step, int64_t columns, uint8_t* to) {
  constexpr int kAtOnce = std::min(kBlocks, Planes::kDecoded);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t b = 0; b < kBlocks; b += kAtOnce, to += kAtOnce * kIndexBytes) {
      const int32_t* here = codes + b * row_step + c * kLanes;
      // Of the next strip, a step that processors do not foresee; not into the nearest cache, where
      // indices and tables are.
      for (int64_t i = 0; i < kAtOnce; ++i)
        __builtin_prefetch(here + (kBlocks + i) * row_step, 0, 2);
      Planes::template decode<kAtOnce>(here, row_step, to);
    }
  }
}

// sums[row + 16 · kBlocks rows] += step · (the sum of the entries at the codes), for every sample.
template <int kBits, int kBlocks, int kAtOnce = Planes::kSamples<kBits>>
inline void add_planes(const uint8_t* indices, int64_t columns, const PlaneSample* samples,
                       int64_t count, int64_t row) {
  for (; count >= kAtOnce; samples += kAtOnce, count -= kAtOnce)
    Planes::add<kBits, kBlocks, kAtOnce>(indices, columns, samples, row);
  if constexpr (kAtOnce > 1)
    if (count > 0)
      add_planes<kBits, kBlocks, kAtOnce / 2>(indices, columns, samples, count, row);
}

// As decode_strip() and add_planes(); few samples need no indices in memory where Isa decodes them
// in registers. `room` is for indices.
template <int kBits, int kBlocks, typename Isa = Planes>
inline void add_codes(const int32_t* codes, int64_t row_step, int64_t columns,
                      const PlaneSample* samples, int64_t count, int64_t row, uint8_t* room) {
  if constexpr (Isa::kInRegisters) {
    const auto all = [&](auto at_once) {
      constexpr int kSome = std::min(kBlocks, Isa::template kCodeBlocks<kBits, at_once.value>);
      for (int b = 0; b < kBlocks; b += kSome)
        Isa::template add_codes<kBits, kSome, at_once.value>(codes + b * row_step, row_step,
                                                             columns, samples, row + 16 * b);
    };
    if (count == 1) return all(std::integral_constant<int, 1>{});
    if (count == 2) return all(std::integral_constant<int, 2>{});
    if constexpr (Isa::template kSamples<kBits> == 4)
      if (count == 4) return all(std::integral_constant<int, 4>{});
  }
  decode_strip<kBlocks>(codes, row_step, columns, room);
  add_planes<kBits, kBlocks>(room, columns, samples, count, row);
}

// sums[place · sum_step + row + 16 · kBlocks rows] += what `count` places find at `positions`
// positions of a convolution, one position after another. A place's tables at a position are
// tables[sources[position · source_step + place]], indices those at `position_bytes` · position.
template <int kBits, int kBlocks, typename Isa = Planes>
inline void add_positions(const uint8_t* indices, int64_t position_bytes, int64_t positions,
                          int64_t columns, const PlaneTable* tables, const int32_t* sources,
                          int64_t source_step, int64_t count, float* sums, int64_t sum_step) {
  if constexpr (Isa::kInRegisters) {
    constexpr int kAtOnce = Isa::template kPlacesAtOnce<kBits, kBlocks>;
    const auto some = [&](auto at_once) {
      for (; count >= at_once.value; count -= at_once.value) {
        Isa::template add_positions<kBits, kBlocks, at_once.value>(
            indices, position_bytes, positions, columns, tables, sources, source_step, sums,
            sum_step);
        sources += at_once.value;
        sums += at_once.value * sum_step;
      }
    };
    some(std::integral_constant<int, kAtOnce>{});
    some(std::integral_constant<int, 1>{});
  } else {
    constexpr int64_t kAtOnce = 16;  // places, whose tables stay in the nearest cache
    for (int64_t first = 0; first < count; first += kAtOnce, sums += kAtOnce * sum_step) {
      const int64_t places = std::min(kAtOnce, count - first);
      for (int64_t p = 0; p < positions; ++p)
        Isa::template add_position<kBits, kBlocks>(indices + p * position_bytes, columns, tables,
                                                   sources + p * source_step + first, places, sums,
                                                   sum_step);
    }
  }
}

// Calls f(kStrip blocks at a time), then what is left in halves: f(integral_constant, first block).
template <int kStrip = Planes::kStrip, typename F>
inline void each_plane_strip(int64_t first, int64_t last, F f) {
  for (; first + kStrip <= last; first += kStrip) f(std::integral_constant<int, kStrip>{}, first);
  if constexpr (kStrip > 1)
    if (first < last) each_plane_strip<kStrip / 2>(first, last, f);
}

}  // namespace
}  // namespace vq
