#include "convolution_library.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "convolution_cost.h"
#include "library.h"
#include "operands.h"

namespace vq {
namespace {

using namespace boxed;

constexpr int kLists = 4, kFirstList = 6;  // kernel_size, stride, padding, dilation

// What the kernel does not do goes to the operator in torch:
// input, codes, codebooks, scale, bias, out_channels, four lists, groups, codebook_dtype, precision
void decode_instead(Value* stack, Tensor* tensors, Numbers* lists) {
  for (int i = 0; i < 3; ++i) give(stack + i, std::move(tensors[i]));
  for (int i = 3; i < 5; ++i) give_optional(stack + i, std::move(tensors[i]));
  for (int i = 0; i < kLists; ++i) stack[kFirstList + i] = lists[i].release();
  call("vq::decoded_conv", "", stack);
}

// Strides of (images, channels, *size) with channels next to each other.
std::vector<int64_t> channels_last_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = strides[1] = 1;
  step *= sizes[1];
  for (size_t i = sizes.size(); i-- > 2; step *= sizes[i]) strides[i] = step;
  strides[0] = step;
  return strides;
}

bool channels_last(const Tensor& tensor) {
  const auto strides = channels_last_strides({tensor.sizes, tensor.sizes + tensor.dims});
  for (int64_t i = 0; i < tensor.dims; ++i)
    if (tensor.sizes[i] != 1 && tensor.strides[i] != strides[i]) return false;
  return true;
}

Tensor empty_channels_last(const std::vector<int64_t>& sizes) {
  const auto strides = channels_last_strides(sizes);
  constexpr int32_t cpu = 0;
  torch_abi::TensorHandle handle = nullptr;
  torch_abi::check(functions().empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                             strides.data(), functions().float32, cpu, 0, &handle),
                   "allocate a tensor");
  return Tensor(handle);
}

const ConvolutionKernel& choose(const Kernels& kernels, Precision precision) {
  return kernels.convolve[static_cast<int>(precision)];
}

ConvolutionShape shape_of(const Convolution& c) {
  const auto product = [](const int64_t* three) { return three[0] * three[1] * three[2]; };
  return {c.images,       product(c.size),   product(c.places), c.in,
          c.out,          c.groups,          product(c.kernel), c.books.stages,
          c.books.k,      c.books.dim,       c.books.book_step == 0};
}

void codebook_conv(Value* stack, uint64_t, uint64_t) {
  Tensor tensors[5] = {take(stack[0]), take(stack[1]), take(stack[2]), take_optional(stack[3]),
                       take_optional(stack[4])};
  const auto& [input, codes, codebooks, scale, bias] = tensors;
  Numbers lists[kLists] = {Numbers(stack[kFirstList]), Numbers(stack[kFirstList + 1]),
                           Numbers(stack[kFirstList + 2]), Numbers(stack[kFirstList + 3])};
  const auto dtype = static_cast<int32_t>(stack[11]);
  const auto precision = static_cast<int64_t>(stack[12]);

  Convolution c{};
  c.out = static_cast<int64_t>(stack[5]);
  c.groups = static_cast<int64_t>(stack[10]);
  const int64_t space = input.dims - 2;
  const bool right_dims =
      space >= 1 && space <= 3 && codebooks.dims == 5 && codebooks.numel() > 0 &&
      std::all_of(lists, lists + kLists, [=](const Numbers& list) {
        return static_cast<int64_t>((*list).size()) == space;
      });
  // Torch computes all else, or says what is wrong with it.
  if (!right_dims || input.numel() == 0 || c.out <= 0 || c.groups <= 0 || precision < 0 ||
      precision > 2 || input.sizes[1] % c.groups != 0 || c.out % c.groups != 0)
    return decode_instead(stack, tensors, lists);
  c.images = input.sizes[0];
  c.in = input.sizes[1];
  for (int i = 0; i < 3; ++i)
    c.size[i] = c.kernel[i] = c.stride[i] = c.dilation[i] = c.places[i] = 1;
  for (int from = 0; from < space; ++from) {
    // Of two dimensions the second is the last one of three.
    const int i = space == 2 ? 2 * from : from;
    c.size[i] = input.sizes[2 + from];
    c.kernel[i] = (*lists[0])[from];
    c.stride[i] = (*lists[1])[from];
    c.padding[i] = (*lists[2])[from];
    c.dilation[i] = (*lists[3])[from];
    const int64_t room =
        c.size[i] + 2 * c.padding[i] - c.dilation[i] * (c.kernel[i] - 1) - 1;
    if (c.kernel[i] < 1 || c.stride[i] < 1 || c.padding[i] < 0 || c.dilation[i] < 1 || room < 0)
      return decode_instead(stack, tensors, lists);
    c.places[i] = room / c.stride[i] + 1;
  }
  c.books = books_of(codebooks, dtype);
  const int64_t pieces = div_up(c.in / c.groups, c.books.dim);
  const int64_t positions = c.kernel[0] * c.kernel[1] * c.kernel[2];
  const NibbleLayout layout(c.out, positions * pieces, false);
  const int64_t expected[4] = {c.books.stages, layout.row_blocks, layout.column_blocks, kLanes};
  const int64_t books = codebooks.sizes[2];
  const bool fits = packed(codes) && std::equal(expected, expected + 4, codes.sizes) &&
                    codebooks.sizes[1] == 1 && (books == 1 || books == pieces) &&
                    (!scale || (scale.dims == 1 && scale.sizes[0] == c.out)) &&
                    (!bias || (bias.dims == 1 && bias.sizes[0] == c.out));
  const bool readable = kernels_read(codes, codebooks, scale, dtype) && floats(input) &&
                        (!bias || (floats(bias) && bias.contiguous()));
  const bool last = !input.contiguous();
  if (!fits || !readable || (last && !channels_last(input)) ||
      (c.groups > 1 && c.out / c.groups % kLanes != 0))
    return decode_instead(stack, tensors, lists);

  const Kernels& kernels = *kernels_in_use.load();
  const ConvolutionKernel& kernel = choose(kernels, static_cast<Precision>(precision));
  std::vector<float> rounded_scale;
  if (scale) {
    rounded_scale.resize(static_cast<size_t>(c.out));
    kernels.round(scale.as<float>(), c.out, c.books.rounding, rounded_scale.data());
    c.scale = rounded_scale.data();
  }
  std::vector<int64_t> sizes{c.images, c.out};
  for (int i = 0; i < space; ++i) sizes.push_back(c.places[space == 2 ? 2 * i : i]);
  Tensor result = last ? empty_channels_last(sizes) : empty(sizes, functions().float32);
  c.channels_last = last;
  c.x = input.as<float>();
  c.y = result.as<float>();
  c.bias = bias ? bias.as<float>() : nullptr;
  c.codes = codes.as<int32_t>();
  c.picoseconds = picoseconds(kernel.cost, shape_of(c));
  kernel.run(c, torch_pool());
  give(stack, std::move(result));
}

}  // namespace

bool convolution_faster_than_float(const ConvolutionShape& shape, Precision precision) {
  const Kernels& kernels = *kernels_in_use.load();
  return picoseconds(choose(kernels, precision).cost, shape) <=
         float_picoseconds(kernels.float_convolution, shape);
}

void register_convolution_operator(torch_abi::LibraryHandle library) {
  for (const char* name : {"codebook_conv", "codebook_conv.inference"})
    torch_abi::check(functions().library_impl(library, name, codebook_conv),
                     "register an operator");
}

}  // namespace vq
