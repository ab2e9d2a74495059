// Weights written out from their codes. A piece of some rows stays in the nearest cache while its
// stages are summed, scaled and, where sub-vectors run along the outputs, turned.
#pragma once

#include <cstring>

#include "decode_nibbles.h"

namespace vq {
namespace {

constexpr int64_t kDecodedValues = 2048;  // of one row
constexpr int64_t kTurnedValues = 32;     // of kTurnedRows, where the outputs are the other side
constexpr int64_t kTurnedRows = 512;
constexpr int64_t kNearBooks = 8192;  // floats of the codebooks of one piece
constexpr int64_t kMostMoved = 16;    // floats

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

// Centers of `dim` floats, one subspace after another, until `values` are written. Moves kMoved
// floats at a time, the last of which the next center overwrites, where there is room for that.
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
  if (dim <= kMostMoved) return copy_centers<kMostMoved>(table, book, dim, codes, values, to);
  for (int64_t s = 0; s * dim < values; ++s)
    std::copy_n(table + s * book + codes[s] * dim, std::min(dim, values - s * dim), to + s * dim);
}

// Single weights of one codebook; lookup256 writes 64 at a time.
inline void copy_single(const Vec::Table256& table, const uint8_t* codes, int64_t values,
                        float* to) {
  constexpr int64_t kAtOnce = 64;
  const int64_t whole = values / kAtOnce * kAtOnce;
  float rest[kAtOnce];
  if (whole > 0) Vec::lookup256(table, codes, whole, to);
  if (whole == values) return;
  Vec::lookup256(table, codes + whole, values - whole, rest);
  std::copy_n(rest, values - whole, to + whole);
}

inline void copy_single(const float* table, const int32_t* dwords, int64_t step, int64_t values,
                        float* to) {
  const auto centers = Vec::table(table);
  float rest[kNibbles];
  for (; values >= kNibbles; values -= kNibbles, dwords += step, to += kNibbles)
    Vec::lookup8(centers, static_cast<uint32_t>(*dwords), to);
  if (values == 0) return;
  Vec::lookup8(centers, static_cast<uint32_t>(*dwords), rest);
  std::copy_n(rest, values, to);
}

// Subspaces of a row, from `first` on.
struct Span {
  int64_t first, subspaces, values;
};

// Decodes pieces of rows, a thread for itself.
class Decoder {
 public:
  Decoder(const Decoding& p, int64_t piece)
      : p_(p),
        layout_(p.rows, p.subspaces, p.along_out),
        shared_(p.books.book_step == 0),
        single_(shared_ && p.books.dim == 1),
        entries_(entries(p)),
        book_(shared_ ? 0 : entries_ * p.books.dim),
        stage_(entries_ * p.books.dim * (shared_ ? 1 : piece)) {
    struct Centers;
    struct Tables;
    struct Codes;
    struct Summand;
    centers_ = scratch<Centers, float>(p.books.stages * stage_ + kMostMoved);
    codes_ = scratch<Codes, uint8_t>(piece);
    if (single_ && !p.packed) tables_ = scratch<Tables, Vec::Table256>(p.books.stages);
    if (p.books.stages > 1) summand_ = scratch<Summand, float>(piece * p.books.dim);
  }

  // Centers of each codebook: as many as codes can name.
  static int64_t entries(const Decoding& p) {
    if (p.packed) return kLanes;
    return p.books.book_step == 0 ? kByteCenters : p.books.k;
  }

  void decode(int64_t row, const Span& span, float* to) {
    load(row / p_.group, span);
    for (int64_t stage = 0; stage < p_.books.stages; ++stage) {
      decode_stage(stage, row, span, stage == 0 ? to : summand_);
      if (stage > 0)
        for (int64_t i = 0; i < span.values; ++i) to[i] += summand_[i];
    }
    if (p_.scale == nullptr) return;
    const float scale = p_.scale[row];
    for (int64_t i = 0; i < span.values; ++i) to[i] *= scale;
  }

 private:
  void load(int64_t group, const Span& span) {
    if (group == loaded_group_ && (shared_ || span.first == loaded_first_)) return;
    loaded_group_ = group;
    loaded_first_ = span.first;
    const Books& books = p_.books;
    for (int64_t t = 0; t < books.stages; ++t) {
      const float* from = books.data + t * books.stage_step + group * books.group_step;
      float* to = centers_ + t * stage_;
      for (int64_t s = 0; s < (shared_ ? 1 : span.subspaces); ++s)
        load_centers(books, from + (span.first + s) * books.book_step, entries_, to + s * book_);
      if (tables_ != nullptr) Vec::load_table256(to, books.rounding == Rounding::half, tables_ + t);
    }
  }

  void decode_stage(int64_t stage, int64_t row, const Span& span, float* to) {
    const float* centers = centers_ + stage * stage_;
    if (p_.packed) {
      const int32_t* dwords = static_cast<const int32_t*>(p_.codes) + stage * layout_.size() +
                              row / kLanes * layout_.row_step() + row % kLanes +
                              span.first / kNibbles * layout_.column_step();
      if (single_) return copy_single(centers, dwords, layout_.column_step(), span.values, to);
      unpack(dwords, span.subspaces);
      return copy_any_centers(centers, book_, p_.books.dim, codes_, span.values, to);
    }
    const uint8_t* codes =
        static_cast<const uint8_t*>(p_.codes) + (stage * p_.rows + row) * p_.subspaces + span.first;
    if (single_) return copy_single(tables_[stage], codes, span.values, to);
    if (entries_ < kByteCenters) {
      // A damaged code must not read beyond the codebook.
      const auto last = static_cast<uint8_t>(entries_ - 1);
      for (int64_t s = 0; s < span.subspaces; ++s) codes_[s] = std::min(codes[s], last);
      codes = codes_;
    }
    copy_any_centers(centers, book_, p_.books.dim, codes, span.values, to);
  }

  void unpack(const int32_t* dwords, int64_t n) {
    for (int64_t s = 0; s < n; s += kNibbles, dwords += layout_.column_step()) {
      uint64_t eight = static_cast<uint32_t>(*dwords);
      eight = (eight | eight << 16) & 0x0000ffff0000ffff;
      eight = (eight | eight << 8) & 0x00ff00ff00ff00ff;
      eight = (eight | eight << 4) & 0x0f0f0f0f0f0f0f0f;
      std::memcpy(codes_ + s, &eight, sizeof eight);
    }
  }

  const Decoding& p_;
  const NibbleLayout layout_;
  const bool shared_, single_;
  const int64_t entries_, book_, stage_;  // floats from one codebook, and stage, to the next
  float* centers_;
  uint8_t* codes_;
  Vec::Table256* tables_ = nullptr;
  float* summand_ = nullptr;
  int64_t loaded_group_ = -1, loaded_first_ = -1;
};

void decode(const Decoding& p, const Pool& pool) {
  if (p.packed && p.along_out && p.group >= p.rows) return decode_nibbles_outward(p, pool);
  const bool shared = p.books.book_step == 0;
  int64_t piece = p.along_out ? kTurnedValues : kDecodedValues;
  if (!shared) piece = std::min(piece, kNearBooks / (Decoder::entries(p) * p.books.stages));
  // Whole dwords of packed codes.
  piece = std::max<int64_t>(piece / p.books.dim / kNibbles, 1) * kNibbles;
  piece = std::min(piece, div_up(p.subspaces, kNibbles) * kNibbles);
  const int64_t pieces = div_up(p.subspaces, piece);
  const int64_t height = p.along_out ? kTurnedRows : kLanes, blocks = div_up(p.rows, height);
  divide(pool, pieces * blocks, 1, p.picoseconds, [&](const Part& part) {
    struct Turned;
    const int64_t wide = piece * p.books.dim;
    float* turned = p.along_out ? scratch<Turned, float>(kTurnedRows * wide) : nullptr;
    Decoder decoder(p, piece);
    for (int64_t unit = part.first; unit < part.last; ++unit) {
      // Row after row, but all rows of subspaces that have codebooks of their own.
      const int64_t at = shared ? unit % pieces : unit / blocks;
      const int64_t row = (shared ? unit / pieces : unit % blocks) * height;
      Span span{at * piece, std::min(piece, p.subspaces - at * piece), 0};
      const int64_t value = span.first * p.books.dim, end = std::min(row + height, p.rows);
      span.values = std::min(span.subspaces * p.books.dim, p.length - value);
      for (int64_t r = row; r < end; ++r)
        decoder.decode(r, span,
                       p.along_out ? turned + (r - row) * wide : p.weight + r * p.length + value);
      if (p.along_out)
        transpose(turned, wide, end - row, span.values, p.weight + value * p.rows + row, p.rows);
    }
  });
}

}  // namespace
}  // namespace vq
