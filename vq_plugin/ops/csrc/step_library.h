// The operators that train whole numbers of a step.
#pragma once

#include "torch_abi.h"

namespace vq {

// Registers them in the library "vq" for the CPU.
void register_step_operators(torch_abi::LibraryHandle);

}  // namespace vq
