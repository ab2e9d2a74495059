#include <cstdlib>
#include <cstring>

#include "isa.h"

namespace vq {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool (*runs_here)();
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512_of_amd() { return has_avx512() && __builtin_cpu_is("amd"); }
bool has_avx2_of_amd() { return has_avx2() && __builtin_cpu_is("amd"); }
#endif
bool always() { return true; }

// The fastest first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&kAvx512OfAmd, has_avx512_of_amd},
    {&kAvx512, has_avx512},
    {&kAvx2OfAmd, has_avx2_of_amd},
    {&kAvx2, has_avx2},
#elif defined(__aarch64__)
    {&kNeon, always},
#endif
    {&kScalar, always},
};

}  // namespace

const Kernels* find_kernels(const char* name) {
  for (const Candidate& c : kCandidates)
    if (std::strcmp(c.kernels->name, name) == 0 && c.runs_here()) return c.kernels;
  return nullptr;
}

const Kernels* best_kernels() {
  for (const Candidate& c : kCandidates)
    if (c.runs_here()) return c.kernels;
  return nullptr;
}

const Kernels* chosen_kernels() {
  static const Kernels* const found = [] {
    const char* name = std::getenv("VQ_PLUGIN_ISA");
    return name == nullptr ? best_kernels() : find_kernels(name);
  }();
  return found;
}

}  // namespace vq
