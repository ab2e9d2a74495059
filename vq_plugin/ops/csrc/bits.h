// Codes of 1 to 8 bits one after the other, the lowest bit first, as files hold them.
#pragma once

#include <cstdint>

namespace vq {

inline int64_t bytes_of(int64_t count, int64_t bits) { return (count * bits + 7) / 8; }

// Bits of a code above `bits` are dropped.
void pack_bits(const uint8_t* codes, int64_t count, int64_t bits, uint8_t* packed);
void unpack_bits(const uint8_t* packed, int64_t count, int64_t bits, uint8_t* codes);

}  // namespace vq
