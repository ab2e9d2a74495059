// Tables of places, or samples, side by side: a register holds one entry of all of them, so that neither what is
// smallest and largest in a table nor its sums take steps across a register. The same bits as tables
// that are made one by one (lookup_nibbles.h, planes.h).
#pragma once

#include "planes.h"

namespace vq {
namespace {

constexpr int64_t kPlaces = Vec::kWidth;

// As Spread, of kPlaces places.
struct PlacesSpread {
  alignas(64) float low[kPlaneTile][kPlaces];
  alignas(64) float range[kPlaneTile][kPlaces];
  alignas(64) float largest[kPlaces];
  alignas(64) float squares[kPlaces];
};

// entries[subspace][center][place] of the subspaces [first, last), counted from the tile's own
// first, for x[channel · x_step + place] and books of (values, 16). Squares are summed by center, of
// even subspaces in squares[0] and of odd ones in squares[1].
template <int kBits, int kValues>
inline void place_products(const float* books, int64_t book_step, int64_t dim, const float* x,
                           int64_t x_step, int64_t values, int64_t first, int64_t last,
                           float* entries, PlacesSpread* spread, Vec::F (*squares)[kLanes]) {
  constexpr int kAtOnce = 4;  // centers
  Vec::F lowest = Vec::zero(), highest = Vec::zero();
  for (int center = 0; center < kLanes; center += kAtOnce) {
    for (int64_t odd = 0; odd < 2; ++odd) {
      Vec::F sums[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) sums[i] = squares[odd][center + i];
      for (int64_t s = first + (first + odd) % 2; s < last; s += 2) {
        const float* book = books + s * book_step + center;
        const float* piece = x + s * dim * x_step;
        Vec::F entry[kAtOnce];
        for (Vec::F& e : entry) e = Vec::zero();
        for (int64_t j = 0; j < (kValues > 0 ? kValues : values); ++j) {
          const Vec::F value = Vec::load(piece + j * x_step);
          for (int i = 0; i < kAtOnce; ++i)
            entry[i] = Vec::fused(value, Vec::set1(book[j * kLanes + i]), entry[i]);
        }
        for (int i = 0; i < kAtOnce; ++i) {
          Vec::store(entries + (s * kLanes + center + i) * kPlaces, entry[i]);
          sums[i] = Vec::fused(entry[i], entry[i], sums[i]);
        }
        Vec::F low = Vec::min(Vec::min(entry[0], entry[1]), Vec::min(entry[2], entry[3]));
        Vec::F high = Vec::max(Vec::max(entry[0], entry[1]), Vec::max(entry[2], entry[3]));
        lowest = Vec::min(lowest, low);
        highest = Vec::max(highest, high);
        if constexpr (kBits != kExactBits) {
          // Of all centers; the highest until the range is known.
          if (center > 0) {
            low = Vec::min(low, Vec::load(spread->low[s]));
            high = Vec::max(high, Vec::load(spread->range[s]));
          }
          Vec::store(spread->low[s], low);
          Vec::store(spread->range[s], high);
        }
      }
      for (int i = 0; i < kAtOnce; ++i) squares[odd][center + i] = sums[i];
    }
  }
  const Vec::F largest = Vec::max(Vec::mul(lowest, Vec::set1(-1.0f)), highest);
  Vec::store(spread->largest, Vec::max(Vec::load(spread->largest), largest));
}

// A tile of `subspaces`, the last of which may have fewer than dim of the `channels` at x. Tables
// up to a multiple of 8 subspaces are 0, spreads up to one of 16.
template <int kBits>
inline void place_tables(const float* books, int64_t book_step, int64_t dim, const float* x,
                         int64_t x_step, int64_t channels, int64_t subspaces, float* entries,
                         PlacesSpread* spread) {
  Vec::F squares[2][kLanes];
  for (auto& of_parity : squares)
    for (Vec::F& sum : of_parity) sum = Vec::zero();
  Vec::store(spread->largest, Vec::zero());
  const auto some = [&](auto constant, int64_t values, int64_t first, int64_t last) {
    place_products<kBits, constant.value>(books, book_step, dim, x, x_step, values, first, last,
                                          entries, spread, squares);
  };
  const int64_t whole = std::min(subspaces, channels / dim);
  if (dim == 4)
    some(std::integral_constant<int, 4>{}, dim, 0, whole);
  else if (dim == 8)
    some(std::integral_constant<int, 8>{}, dim, 0, whole);
  else
    some(std::integral_constant<int, 0>{}, dim, 0, whole);
  if (whole < subspaces)
    some(std::integral_constant<int, 0>{}, channels - whole * dim, whole, subspaces);
  // In the order of find_spread().
  Vec::F* sums = squares[0];
  for (int c = 0; c < kLanes; ++c) sums[c] = Vec::add(sums[c], squares[1][c]);
  for (int count = kLanes / 2; count > 0; count /= 2)
    for (int c = 0; c < count; ++c) sums[c] = Vec::add(sums[2 * c], sums[2 * c + 1]);
  Vec::store(spread->squares, sums[0]);
  std::fill(entries + subspaces * kLanes * kPlaces,
            entries + div_up(subspaces, kNibbles) * kNibbles * kLanes * kPlaces, 0.0f);
  if constexpr (kBits != kExactBits) {
    for (int64_t s = 0; s < subspaces; ++s)
      Vec::store(spread->range[s], Vec::add(Vec::load(spread->range[s]),
                                            Vec::mul(Vec::load(spread->low[s]), Vec::set1(-1.0f))));
    for (int64_t s = subspaces; s < div_up(subspaces, kLanes) * kLanes; ++s) {
      Vec::store(spread->low[s], Vec::zero());
      Vec::store(spread->range[s], Vec::zero());
    }
  }
}

// As entries_per_unit(), of spreads up to a multiple of 16 subspaces.
template <int kBits>
inline Vec::F entries_per_unit(const PlacesSpread& spread, int64_t subspaces) {
  const Vec::F largest = Vec::load(spread.largest);
  if constexpr (kBits == kExactBits) return Vec::div(Vec::set1(kExact), largest);
  const auto range = [&](int64_t s) { return Vec::load(spread.range[s]); };
  const auto two = [&](int64_t s) { return Vec::add(range(s), range(s + 1)); };
  Vec::F together = Vec::zero(), widest = Vec::zero();
  if constexpr (kBits == kFastBits) {
    for (int64_t s = 0; s < subspaces; s += 2) together = Vec::max(together, two(s));
  } else {
    const auto four = [&](int64_t s) { return Vec::add(two(s), two(s + 4)); };
    for (int64_t s = 0; s < subspaces; s += 2 * kNibbles)
      for (int64_t half = 0; half < 4; half += 2)
        together = Vec::max(together, Vec::add(four(s + half), four(s + half + kNibbles)));
    for (int64_t s = 0; s < subspaces; ++s) widest = Vec::max(widest, range(s));
  }
  const Vec::F size = Vec::div(Vec::set1(kSize), largest);
  if constexpr (kBits == kFastBits)
    return Vec::min(size, Vec::div(Vec::set1(kFastTogether), together));
  return Vec::min(size, Vec::min(Vec::div(Vec::set1(kHigh), widest),
                                 Vec::div(Vec::set1(kHighTogether), together)));
}

// As store_planes(), at to[place]; what was added to each place's tables is at `offsets`.
template <int kBits, typename Isa = Planes>
inline void store_places(const float* entries, int64_t columns, const PlacesSpread& spread,
                         uint8_t* const* to, float* per_unit, uint32_t* offsets) {
  const Vec::F by = entries_per_unit<kBits>(spread, columns * kNibbles);
  const Vec::F whole = Vec::set1(kWhole), minus_whole = Vec::set1(-kWhole);
  Vec::store(per_unit, by);
  std::fill(offsets, offsets + kPlaces, 0u);
  for (int64_t c = 0; c < columns; ++c) {
    Vec::F least[kNibbles];  // to the nearest integer
    for (int64_t s = 0; s < kNibbles; ++s)
      least[s] = kBits == kExactBits
                     ? Vec::zero()
                     : Vec::add(Vec::add(Vec::mul(Vec::load(spread.low[c * kNibbles + s]), by),
                                         whole),
                                minus_whole);
    Isa::template store_column_of_places<kBits>(entries + c * kNibbles * kLanes * kPlaces, by, least,
                                                to, c * Isa::template kColumnBytes<kBits>, offsets);
  }
}

// Of subspaces that are not all zero; entries of a place are `step` floats apart.
inline int64_t entries_not_zero(const float* table, int64_t subspaces, int64_t step) {
  int64_t count = 0;
  for (int64_t s = 0; s < subspaces; ++s) {
    bool any = false;
    for (int64_t c = 0; c < kLanes; ++c, table += step) any |= *table != 0;
    count += any;
  }
  return count * kLanes;
}

}  // namespace
}  // namespace vq
