// The operator vq::codebook_conv.
#pragma once

#include "convolution_cost.h"
#include "torch_abi.h"

namespace vq {

// Whether the kernel in use is about as fast as torch's float32 convolution, or faster.
bool convolution_faster_than_float(const ConvolutionShape&, Precision);

// Registers it in the library "vq" for the CPU.
void register_convolution_operator(torch_abi::LibraryHandle);

}  // namespace vq
