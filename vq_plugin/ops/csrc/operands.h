// Operands of an operator: whether they make a weight, and what the kernels are told of them. A
// Tensor is that of any runtime, with dims, sizes, strides, data, numel() and as<T>().
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "packing.h"

namespace vq {

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

template <typename Tensor>
std::string shape(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dims; ++i)
    text += (i ? ", " : "") + std::to_string(tensor.sizes[i]);
  return text + ")";
}

template <typename Tensor>
bool packed(const Tensor& codes) {
  return codes.dims == 4;
}

// Whether codes and codebooks, (stages, groups, books, k, dim), make a weight of so many rows.
template <typename Tensor>
bool make_a_weight(const Tensor& codes, const Tensor& codebooks, int64_t rows, int64_t length,
                   bool along_out, int64_t group) {
  const int64_t stages = codebooks.sizes[0], groups = codebooks.sizes[1],
                books = codebooks.sizes[2], dim = codebooks.sizes[4];
  const int64_t subspaces = div_up(length, dim);
  const NibbleLayout layout(rows, subspaces, along_out);
  const int64_t expected[4] = {stages, along_out ? layout.column_blocks : layout.row_blocks,
                               along_out ? layout.row_blocks : layout.column_blocks, kLanes};
  const bool codes_fit = packed(codes) ? std::equal(expected, expected + 4, codes.sizes)
                                       : codes.dims == 3 && codes.sizes[0] == stages &&
                                             codes.sizes[1] == rows && codes.sizes[2] == subspaces;
  const bool groups_fit = group > 0 ? groups == div_up(rows, group) : groups == 1;
  return codes_fit && groups_fit && (books == 1 || books == subspaces);
}

template <typename Tensor>
Books books_of(const Tensor& codebooks, Rounding rounding) {
  const auto step = [&](int i) { return codebooks.sizes[i] == 1 ? 0 : codebooks.strides[i]; };
  return {codebooks.template as<float>(),
          step(0),
          step(1),
          step(2),
          step(3),
          step(4),
          codebooks.sizes[0],
          codebooks.sizes[3],
          codebooks.sizes[4],
          rounding};
}

// A linear layer of `in` inputs, without the samples and what comes of them; fails where the
// operands do not make one.
template <typename Tensor>
Linear linear_of(const Tensor& codes, const Tensor& codebooks, const Tensor& scale,
                 const Tensor& bias, int64_t in, int64_t out, bool along_out, int64_t group,
                 Rounding rounding) {
  if (codebooks.dims != 5)
    fail("codebook_linear: codebooks need 5 dimensions, got " + shape(codebooks));
  if (out < 0) fail("codebook_linear: out_features is negative");
  if (codebooks.numel() == 0) fail("codebook_linear: the codebooks are empty");
  Linear p{};
  p.in = in;
  p.out = out;
  p.rows = along_out ? in : out;
  const int64_t length = along_out ? out : in;
  if (!make_a_weight(codes, codebooks, p.rows, length, along_out, group))
    fail("codebook_linear: codes " + shape(codes) + " and codebooks " + shape(codebooks) +
         " do not make a weight of " + std::to_string(out) + " x " + std::to_string(in));
  if (scale && (scale.dims != 1 || scale.sizes[0] != p.rows))
    fail("codebook_linear: scale " + shape(scale) + " is not (" + std::to_string(p.rows) + ")");
  if (bias && (bias.dims != 1 || bias.sizes[0] != out))
    fail("codebook_linear: bias " + shape(bias) + " is not (" + std::to_string(out) + ")");
  p.bias = bias ? bias.template as<float>() : nullptr;
  p.books = books_of(codebooks, rounding);
  p.subspaces = div_up(length, p.books.dim);
  p.group = group > 0 ? group : p.rows;
  p.codes = codes.data;
  return p;
}

}  // namespace vq
