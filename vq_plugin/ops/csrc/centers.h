// Books of up to 256 centers as they are in memory, one center after another: to turn one that serves
// one table alone takes longer than its products.
#pragma once

#include "common.h"

namespace vq {
namespace {

inline bool together(const Books& books) {
  return books.center_step == books.dim && books.value_step == 1;
}

inline const float* book_at(const Books& books, int64_t stage, int64_t s) {
  return books.data + stage * books.stage_step + s * books.book_step;
}

// The centers from c on; past the last one, zeros.
template <int kDim>
inline const float* sixteen_centers(const float* book, int64_t k, int64_t c, float* rest) {
  const float* from = book + c * kDim;
  if (k - c >= kLanes) return from;
  std::fill(std::copy(from, book + k * kDim, rest), rest + kLanes * kDim, 0.0f);
  return rest;
}

// A book as it is in memory, or rounded, centers at center_step and values at value_step.
struct Centers {
  const float* data;
  int64_t center_step, value_step;
};

// `room` is for a book.
inline Centers centers_of(const Books& books, int64_t stage, int64_t s, float* room) {
  if (!together(books)) {
    load_book(books, stage, 0, s, room, kByteCenters);
    return {room, 1, kByteCenters};
  }
  const float* from = book_at(books, stage, s);
  if (books.rounding != Rounding::none) {
    round_all(from, books.k * books.dim, books.rounding, room);
    from = room;
  }
  return {from, books.dim, 1};
}

}  // namespace
}  // namespace vq
