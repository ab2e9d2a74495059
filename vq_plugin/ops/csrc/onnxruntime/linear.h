// The operator CodebookLinear.
#pragma once

#include "runtime.h"

namespace vq::ort {

// input (..., in), codes, codebooks (stages, groups, books, k, dim), scale, bias -> (..., out).
class CodebookLinear {
 public:
  static constexpr const char* kName = "CodebookLinear";
  static constexpr int32_t kInput = kFloat;

  CodebookLinear(const Functions&, const Info*);
  void compute(Context*);

  const Functions functions;

 private:
  const int64_t out_, group_;
  const bool along_out_;
  const Precision precision_;
  Threads threads_;
};

}  // namespace vq::ort
