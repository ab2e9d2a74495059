// The operator vq::codebook_conv.
#pragma once

#include "kernels.h"
#include "torch_abi.h"

namespace vq {

// What decides how long a convolution takes.
struct ConvolutionShape {
  int64_t images, inputs, places;  // of an image, of an output
  int64_t in, out, groups;
  int64_t positions, stages, k, dim;
  bool shared;  // one codebook for all pieces of a position
};

// Whether the kernel in use is about as fast as torch's float32 convolution, or faster.
bool convolution_faster_than_float(const ConvolutionShape&, Precision);

// Registers it in the library "vq" for the CPU.
void register_convolution_operator(torch_abi::LibraryHandle);

}  // namespace vq
