// The operator that adds up gradients by the centers that weights have.
#pragma once

#include "torch_abi.h"

namespace vq {

// Registers it in the library "vq" for the CPU.
void register_gradient_operator(torch_abi::LibraryHandle);

}  // namespace vq
