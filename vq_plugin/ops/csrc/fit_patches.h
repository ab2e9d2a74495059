// Patches under the kernel of a convolution, at some of its places.
#pragma once

#include <cstdint>
#include <vector>

namespace vq {

// How position k of the kernel reads at place p of one dimension: number p * stride + k * dilation -
// before of `size`, which are `apart` in memory; a 0 beside them. Dilation is below 0 where the
// positions are in reverse order.
struct PatchDimension {
  int64_t size, apart, kernel, stride, before, dilation, places;
};

// Where every position reads at every place, (positions, count), beyond the first channel's first
// number; -1 for a 0. Places are numbered as (samples, *places), `samples` are `apart` in memory.
inline std::vector<int64_t> patch_reads(const std::vector<PatchDimension>& dimensions,
                                        int64_t apart, const int64_t* place, int64_t count) {
  std::vector<int64_t> rest(place, place + count), reads(static_cast<size_t>(count), 0);
  // The last dimension first, whose positions and places follow each other.
  for (size_t at = dimensions.size(); at-- > 0;) {
    const PatchDimension& d = dimensions[at];
    const size_t inner = reads.size();
    std::vector<int64_t> wider(static_cast<size_t>(d.kernel) * inner);
    std::vector<int64_t> start(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      start[static_cast<size_t>(i)] = rest[static_cast<size_t>(i)] % d.places * d.stride - d.before;
      rest[static_cast<size_t>(i)] /= d.places;
    }
    for (int64_t k = 0; k < d.kernel; ++k)
      for (size_t j = 0; j < inner; j += static_cast<size_t>(count))
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
          const int64_t read = start[i] + k * d.dilation, before = reads[j + i];
          const bool outside = before < 0 || read < 0 || read >= d.size;
          wider[static_cast<size_t>(k) * inner + j + i] = outside ? -1 : before + read * d.apart;
        }
    reads = std::move(wider);
  }
  for (size_t j = 0; j < reads.size(); j += static_cast<size_t>(count))
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
      if (reads[j + i] >= 0) reads[j + i] += rest[i] * apart;
  return reads;
}

}  // namespace vq
