// Weights written out from packed codes where sub-vectors run along the outputs: inputs, which are
// side by side in the weight, stand side by side in a register.
#pragma once

#include "common.h"

namespace vq {
namespace {

constexpr int64_t kDecodedBlocks = 64;  // of rows, whose codes stay near

// One value of the centers of all stages, (16) each `book_step` apart, at the codes of some blocks.
template <int kNibble>
inline void decode_value(const Decoding& p, int64_t size, const int32_t* codes, int64_t row,
                         int64_t end, const float* book, int64_t book_step, float* to) {
  const auto lookup = [&](int64_t stage, int64_t r) {
    return Vec::lookup(Vec::table(book + stage * book_step),
                       Vec::template index<kNibble>(Vec::load_codes(codes + stage * size + r)));
  };
  for (int64_t r = row; r < end; r += Vec::kWidth) {
    Vec::F value = lookup(0, r);
    for (int64_t stage = 1; stage < p.books.stages; ++stage)
      value = Vec::add(value, lookup(stage, r));
    const int64_t n = std::min<int64_t>(Vec::kWidth, end - r);
    if (p.scale != nullptr) value = Vec::mul(value, Vec::load_part(p.scale + r, n));
    Vec::store_part(to + r, n, value);
  }
}

void decode_nibbles_outward(const Decoding& p, const Pool& pool) {
  const NibbleLayout layout(p.rows, p.subspaces, true);
  const int64_t chunks = div_up(layout.row_blocks, kDecodedBlocks), dim = p.books.dim;
  divide(pool, layout.column_blocks * chunks, 1, p.picoseconds, [&](const Part& part) {
    struct Book;
    float* book = scratch<Book, float>(p.books.stages * dim * kLanes);
    for (int64_t unit = part.first; unit < part.last; ++unit) {
      const int64_t column = unit / chunks, row = unit % chunks * kDecodedBlocks * kLanes;
      const int64_t end = std::min(row + kDecodedBlocks * kLanes, p.rows);
      const int32_t* codes = static_cast<const int32_t*>(p.codes) + column * layout.column_step();
      each_nibble([&](auto nibble) {
        const int64_t s = column * kNibbles + nibble.value;
        if (s >= p.subspaces) return;
        for (int64_t stage = 0; stage < p.books.stages; ++stage)
          load_book(p.books, stage, 0, s, book + stage * dim * kLanes);
        for (int64_t j = 0; j < std::min(dim, p.length - s * dim); ++j)
          decode_value<nibble.value>(p, layout.size(), codes, row, end, book + j * kLanes,
                                     dim * kLanes, p.weight + (s * dim + j) * p.rows);
      });
    }
  });
}

}  // namespace
}  // namespace vq
