// The operators of vq_plugin/ops/fit.py.
#pragma once

#include "torch_abi.h"

namespace vq {

// Registers them in the library "vq" for the CPU.
void register_fit_operators(torch_abi::LibraryHandle);

}  // namespace vq
