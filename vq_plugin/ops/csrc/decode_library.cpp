#include "decode_library.h"

#include <utility>
#include <vector>

#include "library.h"
#include "torch_operands.h"

namespace vq {
namespace {

using namespace boxed;

constexpr double kDecodedWeight = 400;  // picoseconds, of every stage

// codes, codebooks, scale, shape, along_out, group, codebook_dtype
void dequantize_codebook(Value* stack, uint64_t, uint64_t) {
  Tensor codes = take(stack[0]), codebooks = take(stack[1]), scale = take_optional(stack[2]);
  Numbers numbers(stack[3]);
  const std::vector<int64_t>& shape = *numbers;
  const bool along_out = (stack[4] & 1) != 0;
  const auto group = static_cast<int64_t>(stack[5]);
  const auto dtype = static_cast<int32_t>(stack[6]);

  Decoding p{};
  p.rows = shape.empty() ? 0 : shape[0];
  p.length = 1;
  for (size_t i = 1; i < shape.size(); ++i) p.length *= shape[i];
  if (along_out) std::swap(p.rows, p.length);
  // Torch computes all else, or says what is wrong with it.
  const bool fits = p.rows > 0 && p.length > 0 && codebooks.dims == 5 && codebooks.numel() > 0 &&
                    make_a_weight(codes, codebooks, p.rows, p.length, along_out, group) &&
                    (!scale || (scale.dims == 1 && scale.sizes[0] == p.rows));
  if (!fits || !kernels_read(codes, codebooks, scale, dtype)) {
    give(stack, std::move(codes));
    give(stack + 1, std::move(codebooks));
    give_optional(stack + 2, std::move(scale));
    stack[3] = numbers.release();
    return call("vq::dequantize_codebook", "in_torch", stack);
  }

  p.books = books_of(codebooks, rounding_of(dtype));
  p.subspaces = div_up(p.length, p.books.dim);
  p.group = group > 0 ? group : p.rows;
  p.codes = codes.data;
  p.packed = packed(codes);
  p.along_out = along_out;
  const Kernels& kernels = *kernels_in_use.load();
  std::vector<float> rounded_scale;
  if (scale) {
    rounded_scale.resize(static_cast<size_t>(p.rows));
    kernels.round(scale.as<float>(), p.rows, p.books.rounding, rounded_scale.data());
    p.scale = rounded_scale.data();
  }
  Tensor weight = empty(shape, functions().float32);
  p.weight = weight.as<float>();
  p.picoseconds = double(p.rows) * double(p.length) * double(p.books.stages) * kDecodedWeight;
  kernels.decode(p, torch_pool());
  give(stack, std::move(weight));
}

}  // namespace

void register_decode_operator(torch_abi::LibraryHandle library) {
  torch_abi::check(functions().library_impl(library, "dequantize_codebook", dequantize_codebook),
                   "register an operator");
}

}  // namespace vq
