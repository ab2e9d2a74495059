// The operator CodebookConv.
#pragma once

#include "runtime.h"

namespace vq::ort {

// input (images, in, *size), codes, codebooks of channels (stages, 1, books, k, dim), scale, bias ->
// (images, out, *places).
class CodebookConv {
 public:
  static constexpr const char* kName = "CodebookConv";
  static constexpr int32_t kInput = kFloat;

  CodebookConv(const Functions&, const Info*);
  void compute(Context*);

  const Functions functions;

 private:
  const int64_t out_, groups_;
  const std::vector<int64_t> kernel_, stride_, padding_, dilation_;
  const Precision precision_;
  Threads threads_;
};

}  // namespace vq::ort
