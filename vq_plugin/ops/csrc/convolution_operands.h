// A convolution on codes, of an operator's operands.
#pragma once

#include <vector>

#include "convolution_cost.h"
#include "operands.h"

namespace vq {

// Settings of an operator, a number for each dimension of an image.
struct ConvolutionSettings {
  const std::vector<int64_t>&kernel, &stride, &padding, &dilation;
};

// Of up to three dimensions the one that comes `from`-th: of two the second is the last.
inline int place_of(int64_t from, int64_t space) {
  return static_cast<int>(space == 2 ? 2 * from : from);
}

// The images and places of a convolution; false where the input and settings make none.
template <typename Tensor>
bool make_places(const Tensor& input, const ConvolutionSettings& settings, Convolution* c) {
  const int64_t space = input.dims - 2;
  const auto fits = [=](const std::vector<int64_t>& list) {
    return static_cast<int64_t>(list.size()) == space;
  };
  if (space < 1 || space > 3 || input.numel() == 0 || !fits(settings.kernel) ||
      !fits(settings.stride) || !fits(settings.padding) || !fits(settings.dilation))
    return false;
  c->images = input.sizes[0];
  c->in = input.sizes[1];
  for (int i = 0; i < 3; ++i)
    c->size[i] = c->kernel[i] = c->stride[i] = c->dilation[i] = c->places[i] = 1;
  for (int64_t from = 0; from < space; ++from) {
    const int i = place_of(from, space);
    c->size[i] = input.sizes[2 + from];
    c->kernel[i] = settings.kernel[from];
    c->stride[i] = settings.stride[from];
    c->padding[i] = settings.padding[from];
    c->dilation[i] = settings.dilation[from];
    const int64_t room =
        c->size[i] + 2 * c->padding[i] - c->dilation[i] * (c->kernel[i] - 1) - 1;
    if (c->kernel[i] < 1 || c->stride[i] < 1 || c->padding[i] < 0 || c->dilation[i] < 1 || room < 0)
      return false;
    c->places[i] = room / c->stride[i] + 1;
  }
  return true;
}

// The convolution, without its layout, input, output and scale; false where the operands make none
// that the kernel computes.
template <typename Tensor>
bool make_a_convolution(const Tensor& input, const Tensor& codes, const Tensor& codebooks,
                        const Tensor& scale, const Tensor& bias, int64_t out, int64_t groups,
                        const ConvolutionSettings& settings, Rounding rounding, Convolution* c) {
  c->out = out;
  c->groups = groups;
  if (!make_places(input, settings, c) || codebooks.dims != 5 || codebooks.numel() == 0) return false;
  if (out <= 0 || groups <= 0 || c->in % groups != 0 || out % groups != 0 ||
      (groups > 1 && out / groups % kLanes != 0))
    return false;
  c->books = books_of(codebooks, rounding);
  c->bias = bias ? bias.template as<float>() : nullptr;
  c->codes = codes.template as<int32_t>();
  const int64_t pieces = div_up(c->in / groups, c->books.dim);
  const int64_t positions = c->kernel[0] * c->kernel[1] * c->kernel[2];
  const NibbleLayout layout(out, positions * pieces, false);
  const int64_t expected[4] = {c->books.stages, layout.row_blocks, layout.column_blocks, kLanes};
  const int64_t books = codebooks.sizes[2];
  return packed(codes) && std::equal(expected, expected + 4, codes.sizes) &&
         codebooks.sizes[1] == 1 && (books == 1 || books == pieces) &&
         (!scale || (scale.dims == 1 && scale.sizes[0] == out)) &&
         (!bias || (bias.dims == 1 && bias.sizes[0] == out));
}

// (images, out, *places).
inline std::vector<int64_t> output_sizes(const Convolution& c, int64_t space) {
  std::vector<int64_t> sizes{c.images, c.out};
  for (int64_t from = 0; from < space; ++from) sizes.push_back(c.places[place_of(from, space)]);
  return sizes;
}

inline ConvolutionShape shape_of(const Convolution& c) {
  const auto product = [](const int64_t* three) { return three[0] * three[1] * three[2]; };
  return {c.images,       product(c.size),   product(c.places), c.in,
          c.out,          c.groups,          product(c.kernel), c.books.stages,
          c.books.k,      c.books.dim,       c.books.book_step == 0};
}

}  // namespace vq
