#include "linear.h"

#include "../choose.h"
#include "../cost.h"
#include "../operands.h"

namespace vq::ort {

CodebookLinear::CodebookLinear(const Functions& f, const Info* info)
    : functions(f),
      out_(number(f, info, "out_features", -1)),
      group_(number(f, info, "group", 0)),
      along_out_(number(f, info, "along_out", 0) != 0),
      precision_(precision(f, info)) {}

void CodebookLinear::compute(Context* context) {
  const Operands o(functions, context);
  if (o.input.dims < 1) fail("codebook_linear: the input needs at least one dimension");
  const int64_t in = o.input.sizes[o.input.dims - 1];
  Linear p = linear_of(o.codes, o.codebooks, o.scale, o.bias, in, out_, along_out_, group_,
                       Rounding::none);
  std::vector<int64_t> sizes(o.input.sizes, o.input.sizes + o.input.dims);
  sizes.back() = out_;
  p.y = output(functions, context, sizes);
  p.batch = o.input.numel() / std::max<int64_t>(in, 1);
  if (p.batch == 0 || in == 0 || out_ == 0)
    return std::fill(p.y, p.y + p.batch * out_, 0.0f);
  p.x = o.input.as<float>();
  p.x_row = in;
  p.x_step = 1;
  p.scale = o.scale.as<float>();
  const Kernel* kernel = choose(*chosen_kernels(), p, packed(o.codes), along_out_, precision_);
  if (kernel == nullptr)
    fail("codebook_linear: groups of " + std::to_string(group_) + " rows have no kernel");
  p.picoseconds = picoseconds(*kernel, p);
  kernel->run(p, threads_.pool(functions, context));
}

}  // namespace vq::ort
