// The operators vq_plugin::* of ExecuTorch programs, by vq.export_executorch(operator="native").
#include "../choose.h"
#include "../convolution_operands.h"
#include "../patches.h"
#include "../strips.h"
#include "../table_operands.h"
#include "runtime.h"

namespace vq::executorch {
namespace {

using Optional = std::optional<Value>;
using Numbers = ArrayRef<int64_t>;

const Kernel& kernel_of(const Linear& p, bool packed, bool along_out, int64_t precision) {
  const Kernel* kernel = choose(kernels(), p, packed, along_out, precision_of(precision));
  if (kernel == nullptr)
    fail("vq_plugin: groups of " + std::to_string(p.group) + " rows have no kernel");
  return *kernel;
}

std::vector<int64_t> list(Numbers numbers) { return {numbers.begin(), numbers.end()}; }

// input (..., in), codes, codebooks (stages, groups, books, k, dim) -> (..., out).
Value& codebook_linear(Context& context, const Value& input, const Value& codes,
                       const Value& codebooks, Optional scale, Optional bias, int64_t out_features,
                       bool along_out, int64_t group, int64_t precision, Value& out) {
  return guarded(context, out, [&] {
    const Tensor x(input, ScalarType::Float);
    const Weight weight(codes, codebooks, scale, bias);
    if (x.dims < 1) fail("codebook_linear: the input needs at least one dimension");
    const int64_t in = x.sizes[x.dims - 1];
    Linear p = linear_of(weight.codes, weight.codebooks, weight.scale, weight.bias, in,
                         out_features, along_out, group, Rounding::none);
    std::vector<int64_t> sizes(x.sizes, x.sizes + x.dims);
    sizes.back() = out_features;
    p.y = output(out, sizes);
    p.batch = x.numel() / std::max<int64_t>(in, 1);
    if (p.batch == 0 || in == 0 || out_features == 0) {
      std::fill(p.y, p.y + p.batch * out_features, 0.0f);
      return;
    }
    p.x = x.as<float>();
    p.x_row = in;
    p.x_step = 1;
    p.scale = weight.scale.as<float>();
    const Kernel& kernel = kernel_of(p, packed(weight.codes), along_out, precision);
    p.picoseconds = picoseconds(kernel, p);
    kernel.run(p, pool());
  });
}

// As CodebookConv of ONNX files: codebooks of channels, looked up by all positions of the kernel.
Value& codebook_conv(Context& context, const Value& input, const Value& codes,
                     const Value& codebooks, Optional scale, Optional bias, int64_t out_channels,
                     Numbers kernel_size, Numbers stride, Numbers padding, Numbers dilation,
                     int64_t groups, int64_t precision, Value& out) {
  return guarded(context, out, [&] {
    const Tensor x(input, ScalarType::Float);
    const Weight weight(codes, codebooks, scale, bias);
    Convolution c{};
    if (!make_a_convolution(x, weight.codes, weight.codebooks, weight.scale, weight.bias,
                            out_channels, groups,
                            {list(kernel_size), list(stride), list(padding), list(dilation)},
                            Rounding::none, &c))
      fail("codebook_conv: input " + shape(x) + ", codes " + shape(weight.codes) +
           " and codebooks " + shape(weight.codebooks) + " make no convolution that has a kernel");
    c.x = x.as<float>();
    c.y = output(out, output_sizes(c, x.dims - 2));
    c.scale = weight.scale.as<float>();
    const ConvolutionKernel& kernel =
        kernels().convolve[static_cast<int>(precision_of(precision))];
    c.picoseconds = picoseconds(kernel.cost, shape_of(c));
    kernel.run(c, pool());
  });
}

// A convolution, of one group, with a weight whose 2-D view, (out, in · kernel), is cut: the product
// of codebook_linear at every place.
Value& codebook_flat_conv(Context& context, const Value& input, const Value& codes,
                          const Value& codebooks, Optional scale, Optional bias,
                          int64_t out_channels, Numbers kernel_size, Numbers stride,
                          Numbers padding, Numbers dilation, bool along_out, int64_t group,
                          int64_t precision, Value& out) {
  return guarded(context, out, [&] {
    const Tensor x(input, ScalarType::Float);
    const Weight weight(codes, codebooks, scale, bias);
    Convolution c{};
    if (!make_places(x, {list(kernel_size), list(stride), list(padding), list(dilation)}, &c))
      fail("codebook_flat_conv: the input " + shape(x) + " has no places");
    const int64_t in = c.in * c.kernel[0] * c.kernel[1] * c.kernel[2];
    Linear p = linear_of(weight.codes, weight.codebooks, weight.scale, weight.bias, in,
                         out_channels, along_out, group, Rounding::none);
    c.out = out_channels;
    p.y = output(out, output_sizes(c, x.dims - 2));
    p.scale = weight.scale.as<float>();
    const Kernel& kernel = kernel_of(p, packed(weight.codes), along_out, precision);
    const int64_t size = x.numel() / c.images;
    multiply_strips(kernels(), kernel, p, c.images, c.places[0] * c.places[1] * c.places[2], pool(),
                    [&](int64_t image, int64_t first, int64_t count) {
                      static thread_local std::vector<float> patches;
                      patches.resize(static_cast<size_t>(in * count));
                      gather_patches(c, x.as<float>() + image * size, first, count, patches.data());
                      return Columns{patches.data(), count};
                    });
  });
}

// rows (...) -> (..., embedding_dim). Codes of a byte, (stages, num, subspaces), or up to 16 centers
// two to a byte, (stages, num, bytes), the lower half first.
Value& codebook_embedding(Context& context, const Value& input, const Value& codes,
                          const Value& codebooks, Optional scale, int64_t embedding_dim,
                          int64_t group, Value& out) {
  return guarded(context, out, [&] {
    const Tensor rows(input, ScalarType::Long);
    const Tensor held(codes, ScalarType::Byte), books(codebooks, ScalarType::Float);
    const bool nibbles = books.dims == 5 && books.sizes[3] <= 16;
    const int64_t step = held.dims == 3 ? held.sizes[2] * (nibbles ? 2 : 1) : 0;
    const Table table = table_of(held, nibbles, step, books, Tensor(scale), embedding_dim, group);
    check_rows(table, rows.as<int64_t>(), rows.numel());
    std::vector<int64_t> sizes(rows.sizes, rows.sizes + rows.dims);
    sizes.push_back(embedding_dim);
    kernels().look_up(table, rows.as<int64_t>(), rows.numel(), output(out, sizes));
  });
}

EXECUTORCH_LIBRARY(vq_plugin, "codebook_linear.out", codebook_linear);
EXECUTORCH_LIBRARY(vq_plugin, "codebook_conv.out", codebook_conv);
EXECUTORCH_LIBRARY(vq_plugin, "codebook_flat_conv.out", codebook_flat_conv);
EXECUTORCH_LIBRARY(vq_plugin, "codebook_embedding.out", codebook_embedding);

}  // namespace
}  // namespace vq::executorch
