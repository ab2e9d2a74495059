// Whether the kernels read torch's tensors.
#pragma once

#include "boxed.h"
#include "operands.h"

namespace vq::boxed {

inline bool floats(const Tensor& tensor) { return tensor.dtype == functions().float32; }

// Whether the kernels read them: dense float32, codes of a nibble or a byte, a rounding they know.
inline bool kernels_read(const Tensor& codes, const Tensor& codebooks, const Tensor& scale,
                         int32_t codebook_dtype) {
  const auto& f = functions();
  const bool right_types = floats(codebooks) && (!scale || floats(scale)) &&
                           codes.dtype == (packed(codes) ? f.int32 : f.uint8);
  const bool dense = codes.contiguous() && (!scale || scale.contiguous());
  const bool rounds =
      codebook_dtype == f.float32 || codebook_dtype == f.float16 || codebook_dtype == f.bfloat16;
  return right_types && dense && rounds && codebooks.sizes[3] <= (packed(codes) ? 16 : 256);
}

inline Rounding rounding_of(int32_t codebook_dtype) {
  return codebook_dtype == functions().float16    ? Rounding::half
         : codebook_dtype == functions().bfloat16 ? Rounding::bfloat
                                                  : Rounding::none;
}

}  // namespace vq::boxed
