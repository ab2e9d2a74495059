// Which input place a position of a convolution's kernel reads for an output place.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "packing.h"

namespace vq {
namespace {

inline int64_t product(const int64_t* three) { return three[0] * three[1] * three[2]; }

// Of one dimension; negative, or -1, beyond the image.
inline int64_t input_of(const Convolution& c, int dimension, int64_t place, const int64_t* at) {
  const int64_t i =
      place * c.stride[dimension] - c.padding[dimension] + at[dimension] * c.dilation[dimension];
  return i < c.size[dimension] ? i : -1;
}

// Of the last dimension: the places from `row` on, `shift` away; -1 beyond the image.
inline void fill_line(const Convolution& c, int64_t row, int64_t shift, int32_t* to) {
  const int64_t places = c.places[2], stride = c.stride[2];
  const int64_t before = div_up(std::max<int64_t>(-shift, 0), stride);
  const int64_t start = std::clamp<int64_t>(before, 0, places);
  const int64_t room = std::max<int64_t>(c.size[2] - shift, 0);
  const int64_t end = row < 0 ? start : std::clamp(div_up(room, stride), start, places);
  std::fill(to, to + start, -1);
  for (int64_t k = start; k < end; ++k) to[k] = static_cast<int32_t>(row + shift + k * stride);
  std::fill(to + end, to + places, -1);
}

// to[position][output place] = the input place that it reads, counted from the line `first_line` of
// the input on, or -1 beyond the image; of the lines [first, last) of outputs.
inline void find_sources(const Convolution& c, int64_t first, int64_t last, int64_t first_line,
                         int32_t* to) {
  int64_t at[3];
  for (at[0] = 0; at[0] < c.kernel[0]; ++at[0])
    for (at[1] = 0; at[1] < c.kernel[1]; ++at[1])
      for (at[2] = 0; at[2] < c.kernel[2]; ++at[2])
        for (int64_t i = first; i < last; ++i)
          for (int64_t j = 0; j < c.places[1]; ++j, to += c.places[2]) {
            const int64_t a = input_of(c, 0, i, at), b = input_of(c, 1, j, at);
            const int64_t row = ((a - first_line) * c.size[1] + b) * c.size[2];
            fill_line(c, a < 0 || b < 0 ? -1 : row, at[2] * c.dilation[2] - c.padding[2], to);
          }
}

}  // namespace
}  // namespace vq
