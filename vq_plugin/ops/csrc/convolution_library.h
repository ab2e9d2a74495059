// The operator vq::codebook_conv.
#pragma once

#include "convolution_cost.h"
#include "library.h"
#include "torch_abi.h"

namespace vq {

// The same of a convolution.
Estimates estimates(const ConvolutionShape&, Precision);

// Registers it in the library "vq" for the CPU.
void register_convolution_operator(torch_abi::LibraryHandle);

}  // namespace vq
