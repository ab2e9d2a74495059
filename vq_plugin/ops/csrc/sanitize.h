// Masked loads and stores, made visible to AddressSanitizer, which instruments none of them.
#pragma once

#include <cstdint>

namespace vq {
namespace {

inline void touch([[maybe_unused]] const float* p, [[maybe_unused]] int64_t n) {
#if defined(__SANITIZE_ADDRESS__)
  for (int64_t i = 0; i < n; ++i) static_cast<void>(*static_cast<const volatile float*>(p + i));
#endif
}

}  // namespace
}  // namespace vq
