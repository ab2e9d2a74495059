#include "library.h"

#include <algorithm>
#include <string>
#include <vector>

#include "choose.h"
#include "convolution_library.h"
#include "cost.h"
#include "decode_library.h"
#include "fit_library.h"
#include "gradient_library.h"
#include "step_library.h"
#include "packing.h"
#include "strips.h"
#include "torch_operands.h"

namespace vq {

std::atomic<const Kernels*> kernels_in_use{nullptr};

namespace {

using namespace boxed;

// Serial inside one of torch's own parallel regions, as torch's operators are.
void run_on_torch_threads(int64_t tasks, void (*body)(int64_t, void*), void* context) {
  struct Call {
    void (*body)(int64_t, void*);
    void* context;
  } call{body, context};
  const auto run = [](int64_t begin, int64_t end, void* opaque) {
    const Call& c = *static_cast<Call*>(opaque);
    for (int64_t task = begin; task < end; ++task) c.body(task, c.context);
  };
  torch_abi::check(functions().parallel_for(0, tasks, 1, run, &call), "run in parallel");
}

// What the kernels do not do goes to the operator in torch:
// input, codes, codebooks, scale, bias, out_features, along_out, group, codebook_dtype, precision
void decode_instead(Value* stack, Tensor* tensors, bool pointwise) {
  for (int i = 0; i < 3; ++i) give(stack + i, std::move(tensors[i]));
  for (int i = 3; i < 5; ++i) give_optional(stack + i, std::move(tensors[i]));
  call("vq::decoded_linear", pointwise ? "pointwise" : "", stack);
}

// Samples are rows of the input, or pointwise: (images, in, samples), and outputs likewise.
void multiply(Value* stack, bool pointwise) {
  Tensor tensors[5] = {take(stack[0]), take(stack[1]), take(stack[2]), take_optional(stack[3]),
                       take_optional(stack[4])};
  const auto& [input, codes, codebooks, scale, bias] = tensors;
  const auto out = static_cast<int64_t>(stack[5]);
  const bool along_out = (stack[6] & 1) != 0;
  const auto group = static_cast<int64_t>(stack[7]);
  const auto dtype = static_cast<int32_t>(stack[8]);
  const auto precision = static_cast<int64_t>(stack[9]);

  if (input.dims < 1) fail("codebook_linear: the input needs at least one dimension");
  if (pointwise && input.dims != 3)
    fail("codebook_linear: pointwise needs (images, in, samples), got " + shape(input));
  if (precision < 0 || precision > 2)
    fail("codebook_linear: precision is 0 (exact), 1 (high) or 2 (fast), got " +
         std::to_string(precision));
  const int64_t in = input.sizes[pointwise ? 1 : input.dims - 1];
  Linear p = linear_of(codes, codebooks, scale, bias, in, out, along_out, group,
                       rounding_of(dtype));

  const bool readable = kernels_read(codes, codebooks, scale, dtype) && floats(input) &&
                        (!bias || (floats(bias) && bias.contiguous()));
  if (!readable || input.numel() == 0 || out == 0) return decode_instead(stack, tensors, pointwise);

  p.batch = input.numel() / in;
  const Kernels& kernels = *kernels_in_use.load();
  const Kernel* kernel = choose(kernels, p, packed(codes), along_out,
                                static_cast<Precision>(precision));
  std::vector<float> rounded_scale;
  if (scale) {
    rounded_scale.resize(static_cast<size_t>(p.rows));
    kernels.round(scale.as<float>(), p.rows, p.books.rounding, rounded_scale.data());
    p.scale = rounded_scale.data();
  }
  if (pointwise) {
    if (input.contiguous()) p.x = input.as<float>();
  } else if (input.dims <= 2) {
    p.x = input.as<float>();
    p.x_row = input.dims == 2 ? input.strides[0] : 0;
    p.x_step = in == 1 ? 1 : input.strides[input.dims - 1];
  } else if (input.contiguous()) {
    p.x = input.as<float>();
    p.x_row = in;
    p.x_step = 1;
  }
  if (kernel == nullptr || p.x == nullptr) return decode_instead(stack, tensors, pointwise);

  std::vector<int64_t> sizes(input.sizes, input.sizes + input.dims);
  sizes[pointwise ? 1 : sizes.size() - 1] = out;
  Tensor result = empty(sizes, functions().float32);
  p.y = result.as<float>();
  p.picoseconds = picoseconds(*kernel, p);
  const int64_t places = input.sizes[input.dims - 1];
  if (pointwise)
    multiply_strips(kernels, *kernel, p, input.sizes[0], places, torch_pool(),
                    [&](int64_t image, int64_t first, int64_t) {
                      return Columns{p.x + image * in * places + first, places};
                    });
  else
    kernel->run(p, torch_pool());
  give(stack, std::move(result));
}

void codebook_linear(Value* stack, uint64_t, uint64_t) { multiply(stack, false); }
void codebook_pointwise(Value* stack, uint64_t, uint64_t) { multiply(stack, true); }

// codes, along_out
void pack_codes(Value* stack, uint64_t, uint64_t) {
  const Tensor codes = take(stack[0]);
  const bool along_out = (stack[1] & 1) != 0;
  if (codes.dims != 3 || codes.dtype != functions().uint8 || !codes.contiguous())
    fail("pack_codes: expected contiguous uint8 codes, (stages, rows, subspaces)");
  const int64_t stages = codes.sizes[0], rows = codes.sizes[1], subspaces = codes.sizes[2];
  const NibbleLayout layout(rows, subspaces, along_out);
  Tensor packed = empty({stages, along_out ? layout.column_blocks : layout.row_blocks,
                         along_out ? layout.row_blocks : layout.column_blocks, kLanes},
                        functions().int32);
  for (int64_t t = 0; t < stages; ++t)
    pack_nibbles(codes.as<uint8_t>() + t * rows * subspaces, rows, subspaces, along_out,
                 packed.as<int32_t>() + t * layout.size());
  give(stack, std::move(packed));
}

// packed, rows, subspaces, along_out
void unpack_codes(Value* stack, uint64_t, uint64_t) {
  const Tensor packed = take(stack[0]);
  const auto rows = static_cast<int64_t>(stack[1]), subspaces = static_cast<int64_t>(stack[2]);
  const bool along_out = (stack[3] & 1) != 0;
  if (rows < 0 || subspaces < 0) fail("unpack_codes: a size is negative");
  const NibbleLayout layout(rows, subspaces, along_out);
  if (packed.dims != 4 || packed.dtype != functions().int32 || !packed.contiguous() ||
      packed.numel() != packed.sizes[0] * layout.size())
    fail("unpack_codes: " + shape(packed) + " are not the packed codes of " + std::to_string(rows) +
         " x " + std::to_string(subspaces));
  const int64_t stages = packed.sizes[0];
  Tensor codes = empty({stages, rows, subspaces}, functions().uint8);
  for (int64_t t = 0; t < stages; ++t)
    unpack_nibbles(packed.as<int32_t>() + t * layout.size(), rows, subspaces, along_out,
                   codes.as<uint8_t>() + t * rows * subspaces);
  give(stack, std::move(codes));
}

}  // namespace

Pool torch_pool() {
  uint32_t threads = 1;
  functions().get_num_threads(&threads);
  return {static_cast<int>(threads), run_on_torch_threads};
}

Estimates estimates(const Shape& shape, Precision precision) {
  Linear p{};
  p.batch = shape.batch;
  p.in = shape.in;
  p.out = shape.out;
  p.rows = shape.along_out ? p.in : p.out;
  p.group = shape.group > 0 ? shape.group : p.rows;
  p.books.stages = shape.stages;
  p.books.k = shape.k;
  p.books.dim = std::max<int64_t>(shape.dim, 1);
  p.books.book_step = shape.shared ? 0 : 1;
  p.subspaces = div_up(shape.along_out ? p.out : p.in, p.books.dim);
  const Kernels& kernels = *kernels_in_use.load();
  const Kernel* kernel = choose(kernels, p, shape.packed, shape.along_out, precision);
  if (kernel == nullptr) return {};
  const double turning =
      shape.pointwise ? double(p.batch) * double(p.in + p.out) * kTranspose : 0.0;
  return {kernel->name, kCall + picoseconds(*kernel, p) + turning,
          float_picoseconds(kernels.float_layer, p)};
}

bool register_operators() {
  const torch_abi::Functions* f = torch_abi::load();
  if (f == nullptr) return false;
  torch_abi::LibraryHandle library = nullptr;
  // Never freed: that would take the operators away.
  torch_abi::check(f->library_init_impl("vq", "CPU", __FILE__, __LINE__, &library),
                   "open the library vq");
  const auto add = [&](const char* name, torch_abi::Kernel kernel) {
    torch_abi::check(f->library_impl(library, name, kernel), "register an operator");
  };
  add("codebook_linear", codebook_linear);
  add("codebook_linear.inference", codebook_linear);
  add("codebook_linear.pointwise", codebook_pointwise);
  add("pack_codes", pack_codes);
  add("unpack_codes", unpack_codes);
  register_convolution_operator(library);
  register_decode_operator(library);
  register_fit_operators(library);
  register_gradient_operator(library);
  register_step_operators(library);
  return true;
}

}  // namespace vq
