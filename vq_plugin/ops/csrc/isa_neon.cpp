#if defined(__aarch64__)
#include "isa.h"
#include "vec_neon.h"
//
#include "instantiate.h"
#include "lookup_nibbles_fast.h"

namespace vq {
namespace {

constexpr Kernels make() {
  Kernels kernels = exact_kernels("neon");
  kernels.lookup_nibbles_fast = lookup_nibbles_fast;
  return kernels;
}

}  // namespace

extern const Kernels kNeon = make();

}  // namespace vq
#endif
