#include "isa.h"
#include "vec_scalar.h"
//
#include "instantiate.h"

namespace vq {

extern const Kernels kScalar = exact_kernels("scalar");

}  // namespace vq
