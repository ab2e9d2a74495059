// Weights written out from their codes. A piece of a row is in the nearest cache while its stages
// are summed, scaled and, where sub-vectors run along the outputs, turned.
#pragma once

#include <cstring>

#include "common.h"

namespace vq {
namespace {

constexpr int64_t kPieceValues = 2048;     // of one row
constexpr int64_t kNearBooks = 8192;       // floats of the codebooks of one piece
constexpr double kDecodedWeight = 100;     // picoseconds, of each stage
constexpr int64_t kPairs = kByteCenters;   // of nibbles in a byte
constexpr int64_t kMostMoved = 16;         // floats

// The codebooks of some subspaces, ready to be copied from: all stages, centers one after another.
// Where all subspaces share a codebook of 16 short centers, two nibbles in a byte are one code into
// all pairs of them.
struct Tables {
  bool shared, pairs;
  int64_t entries, dim;  // of one codebook
  int64_t book, stage;   // floats from one to the next
  float* data;

  explicit Tables(const Decoding& p)
      : shared(p.books.book_step == 0), pairs(p.packed && shared && p.books.dim <= 2) {
    entries = pairs ? kPairs : p.packed ? kLanes : p.books.k;
    dim = pairs ? 2 * p.books.dim : p.books.dim;
    book = shared ? 0 : entries * dim;
  }
};

// Centers one after another, rounded; those from k to `entries` repeat the last one.
inline void load_centers(const Books& books, const float* from, int64_t entries, float* to) {
  const int64_t k = std::min(books.k, entries), dim = books.dim;
  if (books.center_step == dim && (books.value_step == 1 || dim == 1)) {
    std::copy_n(from, k * dim, to);
  } else {
    for (int64_t c = 0; c < k; ++c)
      for (int64_t j = 0; j < dim; ++j)
        to[c * dim + j] = from[c * books.center_step + j * books.value_step];
  }
  if (books.rounding != Rounding::none) round_all(to, k * dim, books.rounding, to);
  for (int64_t c = k; c < entries; ++c) std::copy_n(to + (k - 1) * dim, dim, to + c * dim);
}

inline void load_pairs(const Books& books, const float* from, float* to) {
  float centers[kLanes * 2];
  load_centers(books, from, kLanes, centers);
  for (int64_t pair = 0; pair < kPairs; ++pair, to += 2 * books.dim) {
    std::copy_n(centers + (pair & 15) * books.dim, books.dim, to);
    std::copy_n(centers + (pair >> 4) * books.dim, books.dim, to + books.dim);
  }
}

// Sub-vectors, `dim` floats each, until `values` are written. Moves kMoved floats at a time, the
// last of which the next sub-vector overwrites, where there is room for that.
template <int kMoved>
inline void copy_centers(const float* table, int64_t book, int64_t dim, const uint8_t* codes,
                         int64_t values, float* to) {
  int64_t s = 0;
  for (; s * dim + kMoved <= values; ++s)
    std::memcpy(to + s * dim, table + s * book + codes[s] * dim, kMoved * sizeof(float));
  for (; s * dim < values; ++s)
    std::copy_n(table + s * book + codes[s] * dim, std::min(dim, values - s * dim), to + s * dim);
}

inline void copy_any_centers(const float* table, int64_t book, int64_t dim, const uint8_t* codes,
                             int64_t values, float* to) {
  if (dim == 1) return copy_centers<1>(table, book, 1, codes, values, to);
  if (dim == 2) return copy_centers<2>(table, book, 2, codes, values, to);
  if (dim == 4) return copy_centers<4>(table, book, 4, codes, values, to);
  if (dim == 8) return copy_centers<8>(table, book, 8, codes, values, to);
  if (dim <= 4) return copy_centers<4>(table, book, dim, codes, values, to);
  if (dim <= 8) return copy_centers<8>(table, book, dim, codes, values, to);
  if (dim <= 16) return copy_centers<16>(table, book, dim, codes, values, to);
  for (int64_t s = 0; s * dim < values; ++s)
    std::copy_n(table + s * book + codes[s] * dim, std::min(dim, values - s * dim), to + s * dim);
}

// The codes of n subspaces of a row from `first` on, a byte each, or a byte for two of them; in
// `to` where they do not stand so already.
inline const uint8_t* codes_of_row(const Decoding& p, int64_t stage, int64_t row, int64_t first,
                                   int64_t n, bool pairs, uint8_t* to) {
  if (!p.packed) {
    const auto* codes =
        static_cast<const uint8_t*>(p.codes) + (stage * p.rows + row) * p.subspaces + first;
    if (p.books.k >= kByteCenters) return codes;
    const auto last = static_cast<uint8_t>(p.books.k - 1);  // a damaged code must not read beyond
    for (int64_t s = 0; s < n; ++s) to[s] = std::min(codes[s], last);
    return to;
  }
  const NibbleLayout layout(p.rows, p.subspaces, p.along_out);
  const int32_t* dwords = static_cast<const int32_t*>(p.codes) + stage * layout.size() +
                          row / kLanes * layout.row_step() + row % kLanes +
                          first / kNibbles * layout.column_step();
  uint8_t* end = to;
  for (int64_t s = 0; s < n; s += kNibbles, dwords += layout.column_step()) {
    if (pairs) {
      std::memcpy(end, dwords, sizeof *dwords);
      end += sizeof *dwords;
    } else {
      uint64_t eight = static_cast<uint32_t>(*dwords);
      eight = (eight | eight << 16) & 0x0000ffff0000ffff;
      eight = (eight | eight << 8) & 0x00ff00ff00ff00ff;
      eight = (eight | eight << 4) & 0x0f0f0f0f0f0f0f0f;
      std::memcpy(end, &eight, sizeof eight);
      end += sizeof eight;
    }
  }
  return to;
}

void decode(const Decoding& p, const Pool& pool) {
  const Books& books = p.books;
  const Tables layout(p);
  // Subspaces side by side, whole dwords of packed codes.
  int64_t piece = kPieceValues;
  if (!layout.shared) piece = std::min(piece, kNearBooks / (layout.entries * books.stages));
  piece = std::max<int64_t>(piece / books.dim / kNibbles, 1) * kNibbles;
  piece = std::min(piece, div_up(p.subspaces, kNibbles) * kNibbles);
  const int64_t pieces = div_up(p.subspaces, piece), blocks = div_up(p.rows, kLanes);
  const double work = double(p.rows) * double(p.length) * double(books.stages) * kDecodedWeight;
  divide(pool, pieces * blocks, 1, work, [&](const Part& part) {
    struct Centers;
    struct Codes;
    struct Stage;
    struct Turned;
    Tables tables = layout;
    const int64_t row_values = piece * books.dim;
    tables.stage = (tables.shared ? tables.entries * tables.dim : piece * tables.book);
    // Centers are moved in whole registers.
    tables.data = scratch<Centers, float>(books.stages * tables.stage + kMostMoved);
    uint8_t* buffer = scratch<Codes, uint8_t>(piece);
    float* summand = books.stages > 1 ? scratch<Stage, float>(row_values) : nullptr;
    float* rows = p.along_out ? scratch<Turned, float>(kLanes * row_values) : nullptr;
    int64_t loaded_group = -1, loaded_piece = -1;
    for (int64_t unit = part.first; unit < part.last; ++unit) {
      // Rows in order, but all rows of subspaces that have codebooks of their own.
      const int64_t at = tables.shared ? unit % pieces : unit / blocks;
      const int64_t block = tables.shared ? unit / pieces : unit % blocks;
      const int64_t first = at * piece, n = std::min(piece, p.subspaces - first);
      const int64_t values = std::min(n * books.dim, p.length - first * books.dim);
      const int64_t end = std::min((block + 1) * kLanes, p.rows);
      for (int64_t row = block * kLanes; row < end; ++row) {
        const int64_t group = row / p.group;
        if (group != loaded_group || (at != loaded_piece && !tables.shared)) {
          for (int64_t t = 0; t < books.stages; ++t) {
            const float* from = books.data + t * books.stage_step + group * books.group_step;
            float* to = tables.data + t * tables.stage;
            if (tables.pairs)
              load_pairs(books, from, to);
            else
              for (int64_t s = 0; s < (tables.shared ? 1 : n); ++s)
                load_centers(books, from + (first + s) * books.book_step, tables.entries,
                             to + s * tables.book);
          }
          loaded_group = group;
          loaded_piece = at;
        }
        float* to = p.along_out ? rows + row % kLanes * row_values
                                : p.weight + row * p.length + first * books.dim;
        for (int64_t t = 0; t < books.stages; ++t) {
          const uint8_t* codes = codes_of_row(p, t, row, first, n, tables.pairs, buffer);
          copy_any_centers(tables.data + t * tables.stage, tables.book, tables.dim, codes, values,
                           t == 0 ? to : summand);
          if (t > 0)
            for (int64_t i = 0; i < values; ++i) to[i] += summand[i];
        }
        if (p.scale != nullptr)
          for (int64_t i = 0; i < values; ++i) to[i] *= p.scale[row];
      }
      if (p.along_out)
        transpose(rows, row_values, end - block * kLanes, values,
                  p.weight + first * books.dim * p.rows + block * kLanes, p.rows);
    }
  });
}

}  // namespace
}  // namespace vq
