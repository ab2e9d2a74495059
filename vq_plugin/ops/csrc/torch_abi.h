// The part of libtorch's stable C interface that is used here, found at run time: building needs
// neither torch's headers nor its libraries. Since torch 2.10.
// https://docs.pytorch.org/docs/stable/notes/libtorch_stable_abi.html
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace vq::torch_abi {

using Value = uint64_t;  // StableIValue: a number, a tensor handle or a pointer to another value
using TensorHandle = struct OpaqueTensor*;
using LibraryHandle = struct OpaqueLibrary*;
using ListHandle = struct OpaqueList*;
using Kernel = void (*)(Value* stack, uint64_t inputs, uint64_t outputs);

struct Functions {
  int32_t (*library_init_impl)(const char* space, const char* key, const char* file, uint32_t line,
                               LibraryHandle*);
  int32_t (*library_impl)(LibraryHandle, const char* name, Kernel);
  int32_t (*call_dispatcher)(const char* name, const char* overload, Value* stack);
  int32_t (*empty_strided)(int64_t dims, const int64_t* sizes, const int64_t* strides,
                           int32_t dtype, int32_t device, int32_t index, TensorHandle*);
  int32_t (*delete_tensor)(TensorHandle);
  int32_t (*get_data_ptr)(TensorHandle, void**);
  int32_t (*get_dim)(TensorHandle, int64_t*);
  int32_t (*get_sizes)(TensorHandle, int64_t**);
  int32_t (*get_strides)(TensorHandle, int64_t**);
  int32_t (*get_dtype)(TensorHandle, int32_t*);
  int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain,
                          void (*)(int64_t begin, int64_t end, void*), void*);
  int32_t (*get_num_threads)(uint32_t*);
  int32_t (*list_size)(ListHandle, size_t*);
  int32_t (*list_get_item)(ListHandle, size_t index, Value*);
  int32_t (*delete_list)(ListHandle);
  int32_t (*delete_value)(Value*);  // since 2.13, otherwise null
  const char* (*what)();            // since 2.13, otherwise null
  int32_t float64, float32, float16, bfloat16, uint8, int32, int64;
};

// Null where libtorch is not loaded, or older than 2.10.
const Functions* load();

// The functions, once `load` has found them.
const Functions& functions();

inline void check(int32_t code, const char* what) {
  if (code != 0) throw std::runtime_error(std::string("vq_plugin: torch failed to ") + what);
}

// A tensor that this object owns, or none.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(TensorHandle handle) : handle_(handle) {
    const Functions& f = functions();
    check(f.get_dim(handle_, &dims), "get dimensions");
    check(f.get_sizes(handle_, &sizes), "get sizes");
    check(f.get_strides(handle_, &strides), "get strides");
    check(f.get_dtype(handle_, &dtype), "get a dtype");
    check(f.get_data_ptr(handle_, &data), "get data");
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  Tensor(Tensor&& other) noexcept { *this = static_cast<Tensor&&>(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    dims = other.dims, sizes = other.sizes, strides = other.strides;
    dtype = other.dtype, data = other.data;
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) functions().delete_tensor(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  TensorHandle handle() const { return handle_; }
  TensorHandle release() {
    TensorHandle r = handle_;
    handle_ = nullptr;
    return r;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dims; ++i) n *= sizes[i];
    return n;
  }
  bool contiguous() const {
    if (numel() == 0) return true;
    int64_t step = 1;
    for (int64_t i = dims - 1; i >= 0; --i) {
      if (sizes[i] != 1 && strides[i] != step) return false;
      step *= sizes[i];
    }
    return true;
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  int64_t dims = 0;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  int32_t dtype = -1;
  void* data = nullptr;

 private:
  TensorHandle handle_ = nullptr;
};

}  // namespace vq::torch_abi
