// Operands, results, errors and threads of operators in ONNX Runtime.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "../kernels.h"
#include "abi.h"

namespace vq::ort {

// An error that ONNX Runtime made.
struct Failed {
  Status* status;
};

inline void check(Status* status) {
  if (status != nullptr) throw Failed{status};
}

// A dense tensor that ONNX Runtime owns, or none.
class Tensor {
 public:
  static constexpr int64_t kMostDims = 8;

  Tensor() = default;
  Tensor(const Functions&, const Value*);

  explicit operator bool() const { return data != nullptr; }
  int64_t numel() const;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  int64_t dims = 0, sizes[kMostDims] = {}, strides[kMostDims] = {};
  int32_t type = kAny;
  void* data = nullptr;
};

// Inputs of a codebook layer: floats, codes, codebooks, and perhaps scale and bias. Codes of UINT4
// have an axis of the 8 that the kernels read as one dword, which `codes` has not.
struct Operands {
  Tensor input, codes, codebooks, scale, bias;

  Operands(const Functions&, const Context*);
};

// An input of a node, or none.
Tensor input(const Functions&, const Context*, size_t index);

// A new tensor of floats.
float* output(const Functions&, Context*, const std::vector<int64_t>& sizes);

// Attributes of a node; `otherwise` where there is none.
int64_t number(const Functions&, const Info*, const char* name, int64_t otherwise);
std::vector<int64_t> numbers(const Functions&, const Info*, const char* name);

// The precision of a node: 0 exact, 1 high, 2 fast.
Precision precision(const Functions&, const Info*);

// The threads that a session computes with. Their number, which ONNX Runtime does not tell, is
// counted once: work is cut by it, and results do not depend on how.
class Threads {
 public:
  // For the calling thread, until it asks again.
  Pool pool(const Functions&, const Context*);

 private:
  std::atomic<int> known_{0};
};

}  // namespace vq::ort
