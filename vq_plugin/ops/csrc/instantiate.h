// The function table of one instruction set; included last, inside its target.
#pragma once

#include "fit_kernels.h"
#include "lookup_bytes.h"
#include "lookup_nibbles.h"
#include "outward_bytes.h"
#include "outward_nibbles.h"
#include "scalar_bytes.h"
#include "scalar_nibbles.h"

namespace vq {
namespace {

constexpr Kernels exact_kernels(const char* name) {
  Kernels kernels{};
  kernels.name = name;
  kernels.lookup_nibbles = lookup_nibbles;
  kernels.scalar_nibbles = scalar_nibbles;
  kernels.outward_nibbles = outward_nibbles;
  kernels.lookup_bytes = lookup_bytes;
  kernels.scalar_bytes = scalar_bytes;
  kernels.outward_bytes = outward_bytes;
  kernels.round = round_all;
  kernels.fit = &kFit;
  return kernels;
}

}  // namespace
}  // namespace vq
