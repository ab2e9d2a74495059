// The function tables; each is defined where its instruction set can be compiled.
#pragma once

#include "kernels.h"

namespace vq {

extern const Kernels kAvx512, kAvx2, kNeon, kScalar;
extern const Kernels kAvx512OfAmd, kAvx2OfAmd;  // the same kernels, at other costs

}  // namespace vq
