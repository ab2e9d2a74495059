// Operands, errors and threads of operators in ExecuTorch.
#pragma once

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <optional>
#include <vector>

#include "../operands.h"

namespace vq::executorch {

namespace runtime = ::executorch::runtime;
using Context = runtime::KernelRuntimeContext;
using Value = ::executorch::aten::Tensor;
using ::executorch::aten::ArrayRef;
using ::executorch::aten::ScalarType;

// A dense tensor that ExecuTorch owns, or none.
struct Tensor {
  static constexpr int64_t kMostDims = runtime::kTensorDimensionLimit;

  Tensor(const Value& value, ScalarType expected) : dims(value.dim()) {
    if (value.scalar_type() != expected)
      fail("vq_plugin: a tensor has the type " + std::to_string(int(value.scalar_type())) +
           " instead of " + std::to_string(int(expected)));
    if (!runtime::is_contiguous_dim_order(value.dim_order().data(), value.dim()))
      fail("vq_plugin: a tensor is not contiguous");
    data = const_cast<void*>(value.const_data_ptr());
    for (int64_t i = dims, step = 1; i-- > 0; step *= sizes[i])
      sizes[i] = value.size(i), strides[i] = step;
  }
  explicit Tensor(const std::optional<Value>& floats)
      : Tensor(floats ? Tensor(*floats, ScalarType::Float) : Tensor()) {}

  explicit operator bool() const { return data != nullptr; }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dims; ++i) n *= sizes[i];
    return n;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  int64_t dims = 0, sizes[kMostDims] = {}, strides[kMostDims] = {};
  void* data = nullptr;

 private:
  Tensor() = default;
};

// The weight of a layer, and its bias. Packed codes have 4 dimensions, those of a byte 3.
struct Weight {
  Tensor codes, codebooks, scale, bias;

  Weight(const Value& codes, const Value& codebooks, const std::optional<Value>& scale,
         const std::optional<Value>& bias)
      : codes(codes, codes.dim() == 4 ? ScalarType::Int : ScalarType::Byte),
        codebooks(codebooks, ScalarType::Float),
        scale(scale),
        bias(bias) {
    if (codebooks.dim() == 5 && codebooks.size(3) > (packed(this->codes) ? 16 : 256))
      fail("vq_plugin: codebooks " + shape(this->codebooks) +
           " have more centers than codes tell apart");
  }
};

// The floats of an output of these sizes.
inline float* output(const Value& out, const std::vector<int64_t>& sizes) {
  const std::vector<::executorch::aten::SizesType> small(sizes.begin(), sizes.end());
  if (out.scalar_type() != ScalarType::Float ||
      runtime::resize_tensor(out, {small.data(), small.size()}) != runtime::Error::Ok)
    fail("vq_plugin: the program has another output than its operator");
  return out.mutable_data_ptr<float>();
}

// The threads of ExecuTorch's pool; one where the library is built without ET_USE_THREADPOOL.
inline Pool pool() {
  const auto run = [](int64_t tasks, void (*body)(int64_t, void*), void* context) {
    ::executorch::extension::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) body(task, context);
    });
  };
  return {static_cast<int>(::executorch::extension::get_thread_count()), run};
}

inline const Kernels& kernels() {
  const Kernels* found = chosen_kernels();
  if (found == nullptr) fail("VQ_PLUGIN_ISA names no kernels of this machine");
  return *found;
}

inline Precision precision_of(int64_t number) {
  if (number < 0 || number > 2)
    fail("vq_plugin: precision is 0 (exact), 1 (high) or 2 (fast), got " + std::to_string(number));
  return static_cast<Precision>(number);
}

// Runs an operator. What it throws becomes an error of the method that runs.
template <typename Body>
Value& guarded(Context& context, Value& out, Body body) {
  try {
    body();
  } catch (const std::exception& error) {
    ET_LOG(Error, "%s", error.what());
    context.fail(runtime::Error::InvalidArgument);
  }
  return out;
}

}  // namespace vq::executorch
