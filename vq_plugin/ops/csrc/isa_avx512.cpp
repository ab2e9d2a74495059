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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi2")
#endif

#include "vec_avx512.h"
//
#include "instantiate.h"
#include "lookup_nibbles_fast.h"
#include "scalar_nibbles_fast.h"

namespace vq {
namespace {

constexpr Kernels make() {
  Kernels kernels = exact_kernels("avx512");
  kernels.lookup_nibbles_fast = lookup_nibbles_fast;
  kernels.scalar_nibbles_fast = scalar_nibbles_fast;
  return kernels;
}

}  // namespace

extern const Kernels kAvx512 = make();

}  // namespace vq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
