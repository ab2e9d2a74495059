#include "packing.h"

#include <algorithm>

namespace vq {
namespace {

template <typename Visit>
void each_dword(int64_t rows, int64_t subspaces, bool along_out, Visit visit) {
  const NibbleLayout layout(rows, subspaces, along_out);
  for (int64_t row = 0; row < layout.row_blocks * kLanes; ++row) {
    for (int64_t block = 0; block < layout.column_blocks; ++block) {
      const int64_t at =
          row / kLanes * layout.row_step() + block * layout.column_step() + row % kLanes;
      const int64_t first = block * kNibbles;
      visit(row, first, row < rows ? std::min(kNibbles, subspaces - first) : 0, at);
    }
  }
}

}  // namespace

void pack_nibbles(const uint8_t* codes, int64_t rows, int64_t subspaces, bool along_out,
                  int32_t* packed) {
  each_dword(rows, subspaces, along_out, [=](int64_t row, int64_t first, int64_t n, int64_t at) {
    uint32_t dword = 0;
    for (int64_t i = 0; i < n; ++i)
      dword |= uint32_t(codes[row * subspaces + first + i] & 15) << (4 * i);
    packed[at] = static_cast<int32_t>(dword);
  });
}

void unpack_nibbles(const int32_t* packed, int64_t rows, int64_t subspaces, bool along_out,
                    uint8_t* codes) {
  each_dword(rows, subspaces, along_out, [=](int64_t row, int64_t first, int64_t n, int64_t at) {
    const auto dword = static_cast<uint32_t>(packed[at]);
    for (int64_t i = 0; i < n; ++i) codes[row * subspaces + first + i] = dword >> (4 * i) & 15;
  });
}

}  // namespace vq
