// Arguments and results of boxed operators.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "torch_abi.h"

namespace vq::boxed {

using torch_abi::functions;
using torch_abi::Tensor;
using torch_abi::TensorHandle;
using torch_abi::Value;

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

inline Tensor take(Value value) { return Tensor(reinterpret_cast<TensorHandle>(value)); }

inline Tensor take_optional(Value value) {
  auto* inner = reinterpret_cast<Value*>(value);
  if (inner == nullptr) return {};
  Tensor tensor = take(*inner);
  if (functions().delete_value != nullptr)
    functions().delete_value(inner);
  else
    delete inner;
  return tensor;
}

inline double take_double(Value value) {
  double number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

inline Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype) {
  constexpr int32_t cpu = 0;
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  TensorHandle handle = nullptr;
  torch_abi::check(functions().empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                             strides.data(), dtype, cpu, 0, &handle),
                   "allocate a tensor");
  return Tensor(handle);
}

inline void give(Value* place, Tensor result) {
  *place = reinterpret_cast<Value>(result.release());
}

inline std::string shape(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dims; ++i)
    text += (i ? ", " : "") + std::to_string(tensor.sizes[i]);
  return text + ")";
}

}  // namespace vq::boxed
