// Arguments and results of boxed operators.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "operands.h"
#include "torch_abi.h"

namespace vq::boxed {

using torch_abi::functions;
using torch_abi::Tensor;
using torch_abi::TensorHandle;
using torch_abi::Value;

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

// Numbers of an argument int[].
class Numbers {
 public:
  explicit Numbers(Value value) : handle_(reinterpret_cast<torch_abi::ListHandle>(value)) {
    size_t size = 0;
    torch_abi::check(functions().list_size(handle_, &size), "get the size of a list");
    numbers_.resize(size);
    for (size_t i = 0; i < size; ++i) {
      Value item;
      torch_abi::check(functions().list_get_item(handle_, i, &item), "get an item of a list");
      numbers_[i] = static_cast<int64_t>(item);
    }
  }
  Numbers(const Numbers&) = delete;
  Numbers& operator=(const Numbers&) = delete;
  ~Numbers() {
    if (handle_ != nullptr) functions().delete_list(handle_);
  }
  const std::vector<int64_t>& operator*() const { return numbers_; }
  Value release() { return reinterpret_cast<Value>(std::exchange(handle_, nullptr)); }

 private:
  torch_abi::ListHandle handle_;
  std::vector<int64_t> numbers_;
};

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

inline void give_optional(Value* place, Tensor tensor) {
  *place = 0;
  if (!tensor) return;
  // Owned by the dispatcher from here on.
  auto* inner = new Value;
  give(inner, std::move(tensor));
  *place = reinterpret_cast<Value>(inner);
}

// Calls another operator with the arguments on the stack, which its result replaces.
inline void call(const char* name, const char* overload, Value* stack) {
  if (functions().call_dispatcher(name, overload, stack) != 0)
    fail(functions().what != nullptr ? functions().what() : std::string(name) + " failed");
}

}  // namespace vq::boxed
