// The operator CodebookEmbedding.
#pragma once

#include "runtime.h"

namespace vq::ort {

// rows (...), codes (stages, num, subspaces), codebooks (stages, groups, books, k, dim), scale (num)
// -> (..., out). Codes lie row by row: those of UINT4 two to a byte, the lower half first.
class CodebookEmbedding {
 public:
  static constexpr const char* kName = "CodebookEmbedding";
  static constexpr int32_t kInput = kInt64;

  CodebookEmbedding(const Functions&, const Info*);
  void compute(Context*);

  const Functions functions;

 private:
  const int64_t out_, group_;
};

}  // namespace vq::ort
