#include "convolution_library.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "convolution_operands.h"
#include "library.h"
#include "torch_operands.h"

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

void codebook_conv(Value* stack, uint64_t, uint64_t) {
  Tensor tensors[5] = {take(stack[0]), take(stack[1]), take(stack[2]), take_optional(stack[3]),
                       take_optional(stack[4])};
  const auto& [input, codes, codebooks, scale, bias] = tensors;
  Numbers lists[kLists] = {Numbers(stack[kFirstList]), Numbers(stack[kFirstList + 1]),
                           Numbers(stack[kFirstList + 2]), Numbers(stack[kFirstList + 3])};
  const auto dtype = static_cast<int32_t>(stack[11]);
  const auto precision = static_cast<int64_t>(stack[12]);

  Convolution c{};
  const bool last = !input.contiguous();
  const bool fits =
      precision >= 0 && precision <= 2 &&
      make_a_convolution(input, codes, codebooks, scale, bias, static_cast<int64_t>(stack[5]),
                         static_cast<int64_t>(stack[10]),
                         {*lists[0], *lists[1], *lists[2], *lists[3]}, rounding_of(dtype), &c);
  // Torch computes all else, or says what is wrong with it.
  if (!fits || !kernels_read(codes, codebooks, scale, dtype) || !floats(input) ||
      (bias && (!floats(bias) || !bias.contiguous())) || (last && !channels_last(input)))
    return decode_instead(stack, tensors, lists);

  const Kernels& kernels = *kernels_in_use.load();
  const ConvolutionKernel& kernel = choose(kernels, static_cast<Precision>(precision));
  std::vector<float> rounded_scale;
  if (scale) {
    rounded_scale.resize(static_cast<size_t>(c.out));
    kernels.round(scale.as<float>(), c.out, c.books.rounding, rounded_scale.data());
    c.scale = rounded_scale.data();
  }
  const std::vector<int64_t> sizes = output_sizes(c, input.dims - 2);
  Tensor result = last ? empty_channels_last(sizes) : empty(sizes, functions().float32);
  c.channels_last = last;
  c.x = input.as<float>();
  c.y = result.as<float>();
  c.picoseconds = picoseconds(kernel.cost, shape_of(c));
  kernel.run(c, torch_pool());
  give(stack, std::move(result));
}

}  // namespace

Estimates estimates(const ConvolutionShape& shape, Precision precision) {
  const Kernels& kernels = *kernels_in_use.load();
  const ConvolutionKernel& kernel = choose(kernels, precision);
  return {kernel.name, picoseconds(kernel.cost, shape),
          float_picoseconds(kernels.float_convolution, shape)};
}

void register_convolution_operator(torch_abi::LibraryHandle library) {
  for (const char* name : {"codebook_conv", "codebook_conv.inference"})
    torch_abi::check(functions().library_impl(library, name, codebook_conv),
                     "register an operator");
}

}  // namespace vq
