// The operators of vq_plugin.ops for CPU tensors.
#pragma once

#include <atomic>

#include "kernels.h"

namespace vq {

// What the operators compute with.
extern std::atomic<const Kernels*> kernels_in_use;

// Registers the operators with torch; false where torch lacks the interface.
bool register_operators();

}  // namespace vq
