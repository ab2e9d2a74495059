#include "convolution.h"

#include "../convolution_operands.h"

namespace vq::ort {

CodebookConv::CodebookConv(const Functions& f, const Info* info)
    : functions(f),
      out_(number(f, info, "out_channels", -1)),
      groups_(number(f, info, "group", 1)),
      kernel_(numbers(f, info, "kernel_shape")),
      stride_(numbers(f, info, "strides")),
      padding_(numbers(f, info, "padding")),
      dilation_(numbers(f, info, "dilations")),
      precision_(precision(f, info)) {}

void CodebookConv::compute(Context* context) {
  const Operands o(functions, context);
  Convolution c{};
  if (!make_a_convolution(o.input, o.codes, o.codebooks, o.scale, o.bias, out_, groups_,
                          {kernel_, stride_, padding_, dilation_}, Rounding::none, &c))
    fail("codebook_conv: input " + shape(o.input) + ", codes " + shape(o.codes) +
         " and codebooks " + shape(o.codebooks) + " make no convolution that has a kernel");
  c.x = o.input.as<float>();
  c.y = output(functions, context, output_sizes(c, o.input.dims - 2));
  c.scale = o.scale.as<float>();
  const ConvolutionKernel& kernel = chosen_kernels()->convolve[static_cast<int>(precision_)];
  c.picoseconds = picoseconds(kernel.cost, shape_of(c));
  kernel.run(c, threads_.pool(functions, context));
}

}  // namespace vq::ort
