// The inputs that meet the kernel of a convolution, laid out for a product with its weight.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace vq {
namespace {

// Of `count` places that follow each other in a line of outputs, the last dimension, the inputs at
// one position of the kernel; zeros beside the image.
inline void gather_line(const float* line, int64_t size, int64_t at, int64_t stride, int64_t count,
                        float* to) {
  const int64_t before = std::clamp<int64_t>(at < 0 ? (-at + stride - 1) / stride : 0, 0, count);
  const int64_t inside =
      std::clamp<int64_t>(at < size ? (size - 1 - at) / stride + 1 : 0, before, count);
  std::fill(to, to + before, 0.0f);
  if (stride == 1) {
    std::copy(line + at + before, line + at + inside, to + before);
  } else {
    for (int64_t n = before; n < inside; ++n) to[n] = line[at + n * stride];
  }
  std::fill(to + inside, to + count, 0.0f);
}

// Of the places from `first` on, at one position k of the kernel; `channel` is its image.
inline void gather_position(const Convolution& c, const float* channel, const int64_t* k,
                            int64_t first, int64_t count, float* to) {
  int64_t line = first / c.places[2], at = first % c.places[2];
  for (int64_t end = first + count; first < end; ++line, at = 0) {
    const int64_t run = std::min(c.places[2] - at, end - first);
    const int64_t i0 = line / c.places[1] * c.stride[0] - c.padding[0] + k[0] * c.dilation[0];
    const int64_t i1 = line % c.places[1] * c.stride[1] - c.padding[1] + k[1] * c.dilation[1];
    const int64_t i2 = at * c.stride[2] - c.padding[2] + k[2] * c.dilation[2];
    if (i0 < 0 || i0 >= c.size[0] || i1 < 0 || i1 >= c.size[1]) {
      std::fill(to, to + run, 0.0f);
    } else {
      gather_line(channel + (i0 * c.size[1] + i1) * c.size[2], c.size[2], i2, c.stride[2], run, to);
    }
    first += run;
    to += run;
  }
}

// Of an image, (in, *size), the patches of some places: (in, *kernel, count).
inline void gather_patches(const Convolution& c, const float* image, int64_t first, int64_t count,
                           float* to) {
  const int64_t size = c.size[0] * c.size[1] * c.size[2];
  for (int64_t channel = 0; channel < c.in; ++channel, image += size) {
    int64_t k[3];
    for (k[0] = 0; k[0] < c.kernel[0]; ++k[0])
      for (k[1] = 0; k[1] < c.kernel[1]; ++k[1])
        for (k[2] = 0; k[2] < c.kernel[2]; ++k[2], to += count)
          gather_position(c, image, k, first, count, to);
  }
}

}  // namespace
}  // namespace vq
