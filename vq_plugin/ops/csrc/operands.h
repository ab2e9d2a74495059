// Codes, codebooks and scale of a weight, as operators get them.
#pragma once

#include <algorithm>

#include "boxed.h"
#include "kernels.h"
#include "packing.h"

namespace vq::boxed {

inline bool floats(const Tensor& tensor) { return tensor.dtype == functions().float32; }
inline bool packed(const Tensor& codes) { return codes.dims == 4; }

// Whether codes and codebooks, (stages, groups, books, k, dim), make a weight of so many rows.
inline bool make_a_weight(const Tensor& codes, const Tensor& codebooks, int64_t rows,
                          int64_t length, bool along_out, int64_t group) {
  const int64_t stages = codebooks.sizes[0], groups = codebooks.sizes[1],
                books = codebooks.sizes[2], dim = codebooks.sizes[4];
  const int64_t subspaces = div_up(length, dim);
  const NibbleLayout layout(rows, subspaces, along_out);
  const int64_t expected[4] = {stages, along_out ? layout.column_blocks : layout.row_blocks,
                               along_out ? layout.row_blocks : layout.column_blocks, kLanes};
  const bool codes_fit = packed(codes) ? std::equal(expected, expected + 4, codes.sizes)
                                       : codes.dims == 3 && codes.sizes[0] == stages &&
                                             codes.sizes[1] == rows && codes.sizes[2] == subspaces;
  const bool groups_fit = group > 0 ? groups == div_up(rows, group) : groups == 1;
  return codes_fit && groups_fit && (books == 1 || books == subspaces);
}

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

inline Books books_of(const Tensor& codebooks, int32_t codebook_dtype) {
  const auto step = [&](int i) { return codebooks.sizes[i] == 1 ? 0 : codebooks.strides[i]; };
  return {codebooks.as<float>(),
          step(0),
          step(1),
          step(2),
          step(3),
          step(4),
          codebooks.sizes[0],
          codebooks.sizes[3],
          codebooks.sizes[4],
          codebook_dtype == functions().float16    ? Rounding::half
          : codebook_dtype == functions().bfloat16 ? Rounding::bfloat
                                                   : Rounding::none};
}

}  // namespace vq::boxed
