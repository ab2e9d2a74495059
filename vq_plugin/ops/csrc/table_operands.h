// The table of an embedding, of an operator's operands.
#pragma once

#include "operands.h"

namespace vq {

// Of codes (stages, rows, ...), `row_step` of them from a row to the next; fails where the operands
// make no table.
template <typename Tensor>
Table table_of(const Tensor& codes, bool nibbles, int64_t row_step, const Tensor& codebooks,
               const Tensor& scale, int64_t length, int64_t group) {
  Table t{};
  bool fits = codes.dims == 3 && codebooks.dims == 5;
  if (fits) {
    const int64_t* books = codebooks.sizes;
    t = {codes.template as<uint8_t>(), nibbles, row_step, codes.sizes[0], codes.sizes[1], 0, length,
         books[1], group, books[2], books[3], books[4], codebooks.template as<float>(),
         scale ? scale.template as<float>() : nullptr};
    fits = books[0] == t.stages && t.k > 0 && t.k <= (nibbles ? 16 : 256) && t.dim > 0 && length > 0;
  }
  if (fits) {
    t.subspaces = div_up(length, t.dim);
    fits = t.subspaces <= row_step && (t.books == 1 || t.books == t.subspaces) &&
           (t.groups == 1 || (group > 0 && t.groups == div_up(t.rows, group))) &&
           (!scale || scale.numel() == t.rows);
  }
  if (!fits)
    fail("codebook_embedding: codes " + shape(codes) + " and codebooks " + shape(codebooks) +
         " make no table of rows of " + std::to_string(length));
  return t;
}

inline void check_rows(const Table& table, const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (rows[i] < 0 || rows[i] >= table.rows)
      fail("codebook_embedding: there is no row " + std::to_string(rows[i]) + " of " +
           std::to_string(table.rows));
}

}  // namespace vq
