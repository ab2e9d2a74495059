#if defined(__x86_64__)
// Before the target: what the standard library defines must run everywhere.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "isa.h"
#include "kernels.h"
#include "packing.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#include "vec_avx2.h"
//
#include "instantiate.h"

namespace vq {

extern const Kernels kAvx2 = exact_kernels("avx2");

}  // namespace vq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
