// Which kernel computes a linear layer.
#pragma once

#include "kernels.h"
#include "packing.h"

namespace vq {

// Null where none does.
inline const Kernel* choose(const Kernels& kernels, const Linear& p, bool packed, bool along_out,
                            Precision precision) {
  const bool single = p.books.dim == 1 && p.books.book_step == 0 && p.books.stages == 1;
  const auto of_precision = [precision](const Kernel& exact, const Kernel& high,
                                        const Kernel& fast) {
    const Kernel& kernel = precision == Precision::fast   ? fast
                           : precision == Precision::high ? high
                                                          : exact;
    return kernel.run != nullptr ? &kernel : &exact;
  };
  const bool one_group = p.group >= p.rows;
  if (along_out)
    return !one_group ? nullptr : packed ? &kernels.outward_nibbles : &kernels.outward_bytes;
  if (single) {
    if (!packed) return &kernels.scalar_bytes;
    if (!one_group && p.group % kLanes != 0) return nullptr;
    // Tables of single weights pay where many outputs share them and samples are few: three bytes
    // are looked up faster than one float.
    constexpr int64_t kMostSamples = 2, kManyRows = 512;
    if (one_group && p.batch <= kMostSamples && p.rows >= kManyRows && precision != Precision::fast)
      return &kernels.lookup_nibbles;
    return of_precision(kernels.scalar_nibbles, kernels.scalar_nibbles,
                        kernels.scalar_nibbles_fast);
  }
  if (!one_group) return nullptr;
  if (!packed) return &kernels.lookup_bytes;
  return of_precision(kernels.lookup_nibbles, kernels.lookup_nibbles_high,
                      kernels.lookup_nibbles_fast);
}

}  // namespace vq
