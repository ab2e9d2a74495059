// Sub-vectors along the inputs, up to 16 centers: product quantization by tables (Jégou et al.
// 2011, section III.A, on inner products). For each sample and subspace, 16 products of the piece
// of the input with the centers; then one look-up in a register per code instead of dim
// multiplications.
#pragma once

#include "place_tables.h"

namespace vq {
namespace {

constexpr int64_t kBatchChunk = 32;  // samples at a time, whose tables stay near
constexpr int64_t kFew = 16;  // samples, fewer of which have their tables made one by one

// table[16] = the products of a piece of a sample with the centers in book, (values, 16).
template <int kValues>
inline void center_products(const float* book, const float* x, int64_t x_step, int64_t values,
                            float* table) {
  Vec::F sums[kVectors];
  for (auto& sum : sums) sum = Vec::zero();
  for (int64_t j = 0; j < (kValues > 0 ? kValues : values); ++j) {
    const Vec::F value = Vec::set1(x[j * x_step]);
    for (int v = 0; v < kVectors; ++v)
      sums[v] = Vec::fused(value, Vec::load(book + j * kLanes + v * Vec::kWidth), sums[v]);
  }
  for (int v = 0; v < kVectors; ++v) Vec::store(table + v * Vec::kWidth, sums[v]);
}

// tables[sample][subspace][16] for the subspaces [first, last) of one stage, of one sample every
// `table_step` floats; tables of subspaces beyond the last are 0, as their codes are.
inline void build_tables(const Linear& p, int64_t stage, int64_t first, int64_t last,
                         int64_t first_sample, int64_t samples, float* tables, int64_t table_step) {
  struct Books;
  constexpr int64_t kNear = 256;  // values of 16 centers: 16 kB
  const int64_t dim = p.books.dim, book_size = dim * kLanes;
  const bool shared = p.books.book_step == 0;
  const int64_t at_once = std::max<int64_t>(1, kNear / dim);
  float* books = scratch<Books, float>((shared ? 1 : at_once) * book_size);
  if (shared) load_book(p.books, stage, 0, 0, books);
  for (int64_t start = first; start < last; start += at_once) {
    const int64_t end = std::min(start + at_once, last);
    if (!shared)
      for (int64_t s = start; s < end; ++s)
        load_book(p.books, stage, 0, s, books + (s - start) * book_size);
    for (int64_t b = 0; b < samples; ++b) {
      const float* x = p.x + (first_sample + b) * p.x_row + start * dim * p.x_step;
      const float* book = books;
      float* table = tables + b * table_step + (start - first) * kLanes;
      for (int64_t s = start; s < end; ++s, x += dim * p.x_step, table += kLanes) {
        const int64_t values = std::min(dim, p.in - s * dim);
        if (values == 4)
          center_products<4>(book, x, p.x_step, values, table);
        else if (values == 8)
          center_products<8>(book, x, p.x_step, values, table);
        else
          center_products<0>(book, x, p.x_step, values, table);
        if (!shared) book += book_size;
      }
    }
  }
  const int64_t filled = (last - first) * kLanes, all = div_up(last - first, kLanes) * kLanes;
  for (int64_t b = 0; b < samples; ++b)
    std::fill(tables + b * table_step + filled, tables + b * table_step + all * kLanes, 0.0f);
}

// sums[sample][row block][16] += the tables' values at the codes of kBlocks row blocks.
template <int kBlocks, int kBatch>
inline void add_lookups(const int32_t* codes, int64_t row_step, int64_t columns,
                        const float* tables, int64_t table_step, float* sums, int64_t sum_step) {
  constexpr int kRows = kBlocks * kVectors;
  Vec::F total[kRows][kBatch];
  // From zero: a sum of sums loses less than one long sum.
  for (auto& of_row : total)
    for (auto& sum : of_row) sum = Vec::zero();
  for (int64_t column = 0; column < columns; ++column) {
    Vec::I code[kRows];
    for (int r = 0; r < kRows; ++r)
      code[r] = Vec::load_codes(codes + r / kVectors * row_step + column * kLanes +
                                r % kVectors * Vec::kWidth);
      // Not unrolled: compilers would look up all 8 nibbles first and run out of registers.
#pragma GCC unroll 1
    for (int nibble = 0; nibble < kNibbles; ++nibble) {
      Vec::Index index[kRows];
      for (int r = 0; r < kRows; ++r) index[r] = Vec::template index<0>(code[r]);
      for (int b = 0; b < kBatch; ++b) {
        const auto table =
            Vec::table(tables + b * table_step + (column * kNibbles + nibble) * kLanes);
        for (int r = 0; r < kRows; ++r)
          total[r][b] = Vec::add(total[r][b], Vec::lookup(table, index[r]));
      }
      for (int r = 0; r < kRows; ++r) code[r] = Vec::next_nibble(code[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBatch; ++b) {
      float* sum = sums + b * sum_step + r * Vec::kWidth;
      Vec::store(sum, Vec::add(Vec::load(sum), total[r][b]));
    }
  }
}

// Calls f(kSamples at a time), then what is left in halves: f(integral_constant, first sample).
template <int kAtOnce, typename F>
inline void each_samples(int64_t first, int64_t last, F f) {
  for (; first + kAtOnce <= last; first += kAtOnce)
    f(std::integral_constant<int, kAtOnce>{}, first);
  if constexpr (kAtOnce > 1)
    if (first < last) each_samples<kAtOnce / 2>(first, last, f);
}

// The same for row blocks: as many as Vec has registers for beside kBatch samples, then one by one.
template <int kBatch, typename F>
inline void each_blocks(int64_t first, int64_t last, F f) {
  constexpr int kAtOnce = kBatch == 1 ? 2 * Vec::kRowBlocks : Vec::kRowBlocks;
  for (; first + kAtOnce <= last; first += kAtOnce)
    f(std::integral_constant<int, kAtOnce>{}, first);
  if constexpr (kAtOnce > 1)
    for (; first < last; ++first) f(std::integral_constant<int, 1>{}, first);
}

// The tables of a tile of samples, in planes.
template <int kBits>
class SampleTables {
 public:
  static constexpr int64_t kStep = kPlaneTile * kLanes;
  static constexpr int64_t kBytes = kPlaneTile / kNibbles * Planes::kColumnBytes<kBits>;

  SampleTables(const Linear& p, int64_t first_sample, int64_t samples)
      : p_(p), first_sample_(first_sample), samples_(samples) {
    struct Floats;
    struct PlaneBytes;
    floats_ = scratch<Floats, float>(samples * kStep);
    planes_ = scratch<PlaneBytes, uint8_t>((samples + 1) * kBytes);
  }

  // The subspaces [s, last) of one stage. Calls whole(sample, planes, step, offset) where integers fit
  // the entries and are not all 0, and floats(sample, tables) where they do not.
  template <typename Whole, typename Floats>
  void make(int64_t stage, int64_t s, int64_t last, Whole whole, Floats floats) const {
    if constexpr (Planes::kSideBySide)
      if (samples_ >= kFew && p_.x_step == 1)
        return make_side_by_side(stage, s, last, whole, floats);
    build_tables(p_, stage, s, last, first_sample_, samples_, floats_, kStep);
    const int64_t subspaces = last - s, columns = div_up(subspaces, kNibbles);
    for (int64_t b = 0; b < samples_; ++b) {
      const float* table = floats_ + b * kStep;
      Spread spread;
      find_spread<kBits>(table, div_up(subspaces, kLanes) * kLanes, &spread);
      if (!fits_planes<kBits>(spread.largest, spread.squares, subspaces * kLanes)) {
        floats(b, table);
      } else if (spread.largest > 0) {
        const float per_unit = entries_per_unit<kBits>(spread, columns * kNibbles);
        uint8_t* to = planes_ + b * kBytes;
        whole(b, to, 1 / per_unit, store_planes<kBits>(table, columns, spread.low, per_unit, to));
      }
    }
  }

 private:
  template <typename Whole, typename Floats>
  void make_side_by_side(int64_t stage, int64_t s, int64_t last, Whole whole,
                         Floats floats) const {
    struct Spreads;
    struct Turned;
    struct Books;
    struct Entries;
    const int64_t dim = p_.books.dim, subspaces = last - s, columns = div_up(subspaces, kNibbles);
    const int64_t values = std::min(subspaces * dim, p_.in - s * dim);
    const bool shared = p_.books.book_step == 0;
    float* books = scratch<Books, float>((shared ? 1 : subspaces) * dim * kLanes);
    for (int64_t i = 0; i < (shared ? 1 : subspaces); ++i)
      load_book(p_.books, stage, 0, s + i, books + i * dim * kLanes);
    float* x = scratch<Turned, float>(values * kBatchChunk);
    if (samples_ < kBatchChunk) std::fill(x, x + values * kBatchChunk, 0.0f);
    transpose(p_.x + first_sample_ * p_.x_row + s * dim, p_.x_row, samples_, values, x,
              kBatchChunk);
    float* entries = scratch<Entries, float>(columns * kNibbles * kLanes * kPlaces);
    PlacesSpread& spread = *scratch<Spreads, PlacesSpread>(1);
    for (int64_t first = 0; first < samples_; first += kPlaces) {
      place_tables<kBits>(books, shared ? 0 : dim * kLanes, dim, x + first, kBatchChunk, values,
                          subspaces, entries, &spread);
      alignas(64) float per_unit[kPlaces];
      alignas(64) uint32_t offsets[kPlaces];
      uint8_t* to[kPlaces];
      for (int64_t lane = 0; lane < kPlaces; ++lane)
        to[lane] = planes_ + std::min(first + lane, samples_) * kBytes;
      store_places<kBits>(entries, columns, spread, to, per_unit, offsets);
      for (int64_t lane = 0; lane < std::min(kPlaces, samples_ - first); ++lane) {
        const float largest = spread.largest[lane];
        if (!fits_planes<kBits>(largest, spread.squares[lane], subspaces * kLanes)) {
          build_tables(p_, stage, s, last, first_sample_ + first + lane, 1, floats_, kStep);
          floats(first + lane, floats_);
        } else if (largest > 0) {
          whole(first + lane, to[lane], 1 / per_unit[lane], offsets[lane]);
        }
      }
    }
  }

  const Linear& p_;
  const int64_t first_sample_, samples_;
  float* floats_;
  uint8_t* planes_;
};

// y = x · W^T + bias by entries of kBits; see planes.h. Tiles of samples that such entries do not fit
// go by float tables.
template <int kBits>
void lookup_nibbles(const Linear& p, const Pool& pool) {
  const NibbleLayout layout(p.rows, p.subspaces, false);
  divide(pool, layout.row_blocks, p.batch, p.picoseconds, [&](const Part& part) {
    struct Indices;
    struct Sums;
    const int64_t rows = (part.last - part.first) * kLanes;
    for (int64_t start = part.first_sample; start < part.last_sample; start += kBatchChunk) {
      const int64_t samples = std::min(kBatchChunk, part.last_sample - start);
      float* sums = scratch<Sums, float>(samples * rows);
      std::fill(sums, sums + samples * rows, 0.0f);
      const SampleTables<kBits> tables(p, start, samples);
      auto* indices =
          scratch<Indices, uint8_t>(Planes::kStrip * (kPlaneTile / kNibbles) * kIndexBytes);
      for (int64_t stage = 0; stage < p.books.stages; ++stage) {
        const int32_t* codes = static_cast<const int32_t*>(p.codes) + stage * layout.size();
        for (int64_t s = 0; s < p.subspaces; s += kPlaneTile) {
          const int64_t last = std::min(s + kPlaneTile, p.subspaces);
          const int64_t columns = div_up(last - s, kNibbles);
          const int32_t* here = codes + s / kNibbles * kLanes;
          PlaneSample whole[kBatchChunk];
          int64_t count = 0;
          tables.make(
              stage, s, last,
              [&](int64_t b, const uint8_t* planes, float step, uint32_t offset) {
                whole[count++] = {planes, step, offset, sums + b * rows};
              },
              [&](int64_t b, const float* table) {
                each_blocks<1>(part.first, part.last, [&](auto blocks, int64_t block) {
                  add_lookups<blocks.value, 1>(here + block * layout.row_step(), layout.row_step(),
                                               columns, table, 0,
                                               sums + b * rows + (block - part.first) * kLanes,
                                               rows);
                });
              });
          each_plane_strip(part.first, part.last, [&](auto blocks, int64_t block) {
            add_codes<kBits, blocks.value>(here + block * layout.row_step(), layout.row_step(),
                                           columns, whole, count, (block - part.first) * kLanes,
                                           indices);
          });
        }
      }
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t block = part.first; block < part.last; ++block)
          finish(p, block, start + b, sums + b * rows + (block - part.first) * kLanes);
    }
  });
}

}  // namespace
}  // namespace vq
