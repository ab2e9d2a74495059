#include "torch_abi.h"

#include <dlfcn.h>

#include <type_traits>

namespace vq::torch_abi {
namespace {

Functions found;

void* open_libtorch() {
  for (const char* name : {"libtorch_cpu.so", "libtorch_cpu.dylib", "@rpath/libtorch_cpu.dylib"})
    if (void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) return library;
  return RTLD_DEFAULT;
}

}  // namespace

const Functions* load() {
  void* library = open_libtorch();
  bool complete = true;
  const auto find = [&](auto& function, const char* name, bool required = true) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (required && function == nullptr) complete = false;
  };
  find(found.library_init_impl, "aoti_torch_library_init_impl");
  find(found.library_impl, "aoti_torch_library_impl");
  find(found.call_dispatcher, "aoti_torch_call_dispatcher");
  find(found.empty_strided, "aoti_torch_empty_strided");
  find(found.delete_tensor, "aoti_torch_delete_tensor_object");
  find(found.get_data_ptr, "aoti_torch_get_data_ptr");
  find(found.get_dim, "aoti_torch_get_dim");
  find(found.get_sizes, "aoti_torch_get_sizes");
  find(found.get_strides, "aoti_torch_get_strides");
  find(found.get_dtype, "aoti_torch_get_dtype");
  find(found.parallel_for, "torch_parallel_for");
  find(found.get_num_threads, "torch_get_num_threads");
  find(found.list_size, "torch_list_size");
  find(found.list_get_item, "torch_list_get_item");
  find(found.delete_list, "torch_delete_list");
  find(found.delete_value, "torch_delete_stable_ivalue", false);
  find(found.what, "torch_exception_get_what_without_backtrace", false);
  const auto dtype = [&](int32_t& code, const char* name) {
    int32_t (*get)() = nullptr;
    find(get, name);
    if (get != nullptr) code = get();
  };
  dtype(found.float64, "aoti_torch_dtype_float64");
  dtype(found.float32, "aoti_torch_dtype_float32");
  dtype(found.float16, "aoti_torch_dtype_float16");
  dtype(found.bfloat16, "aoti_torch_dtype_bfloat16");
  dtype(found.uint8, "aoti_torch_dtype_uint8");
  dtype(found.int32, "aoti_torch_dtype_int32");
  dtype(found.int64, "aoti_torch_dtype_int64");
  return complete ? &found : nullptr;
}

const Functions& functions() { return found; }

}  // namespace vq::torch_abi
