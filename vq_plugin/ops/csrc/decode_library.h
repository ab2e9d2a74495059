// The operator that writes a weight out.
#pragma once

#include "torch_abi.h"

namespace vq {

// Registers it in the library "vq" for the CPU.
void register_decode_operator(torch_abi::LibraryHandle);

}  // namespace vq
