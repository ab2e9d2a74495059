// The operators of vq_plugin.ops for CPU tensors.
#pragma once

#include <atomic>

#include "kernels.h"

namespace vq {

// What the operators compute with.
extern std::atomic<const Kernels*> kernels_in_use;

struct Shape {
  int64_t batch, in, out, stages, k, dim, group;  // rows per group, or 0
  bool shared;                                    // one codebook for all subspaces
  bool packed, along_out;
  bool pointwise;  // whether inputs and outputs have to be transposed
};

// About how long a layer takes on one thread, in picoseconds: by the kernel of that name, and as
// torch's float32 layer with a kept weight. No name where no kernel computes it.
struct Estimates {
  const char* name = nullptr;
  double codes = 0, plain = 0;
};
Estimates estimates(const Shape&, Precision);

// Torch's own threads.
Pool torch_pool();

// Registers the operators with torch; false where torch lacks the interface.
bool register_operators();

}  // namespace vq
