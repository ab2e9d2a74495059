// The kernels of every instruction set of this machine against their definitions.
//
// kernels_test [PROBLEMS [FIRST]]: a failure names its problem; `kernels_test 1 N` repeats it.
#include "kernels.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "convolutions.h"
#include "decodings.h"
#include "fits.h"
#include "packing.h"
#include "problem.h"
#include "random.h"
#include "reference.h"
#include "rounding.h"

namespace {

constexpr int kThreads = 3;
constexpr int kShownFailures = 2;  // of one kernel

int divided = 0;  // calls that used several threads
std::map<std::string, int> failures;

bool show_failure(const std::string& isa, const std::string& kernel) {
  return failures[isa + " " + kernel]++ < kShownFailures;
}

void run_on_threads(int64_t tasks, void (*body)(int64_t, void*), void* context) {
  ++divided;
  std::vector<std::thread> threads;
  for (int64_t task = 0; task < tasks; ++task) threads.emplace_back(body, task, context);
  for (std::thread& thread : threads) thread.join();
}

// On a thread of its own: what kernels keep from call to call has its exact size then, and
// AddressSanitizer sees its end.
Buffer<float> run(vq::LinearKernel kernel, vq::Linear p, int threads) {
  Buffer<float> y(p.batch * p.out, 1, std::nanf(""));
  p.y = y.data();
  std::thread([&] { kernel(p, vq::Pool{threads, run_on_threads}); }).join();
  return y;
}

void check(const char* isa, const char* precision, vq::LinearKernel kernel, const Problem& problem,
           const Reference& expected, const std::vector<double>& tolerance, int number,
           Buffer<float>* first) {
  const Buffer<float> y = run(kernel, problem.linear, 1);
  const Buffer<float> again = run(kernel, problem.linear, kThreads);
  // Sums of integers are the same bits on every instruction set.
  const bool by_integers = problem.kind.exact == &vq::Kernels::lookup_nibbles ||
                           std::strcmp(precision, "fast") == 0;
  if (first->size() == 0) *first = run(kernel, problem.linear, 1);
  const auto same_bits = [](float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
  };
  for (int64_t i = 0; i < y.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t sample = i / problem.linear.out, output = i % problem.linear.out;
    if (expected.open[static_cast<size_t>(output)]) continue;
    if (std::isnan(expected.y[at])) {
      if (std::isnan(y[i]) && std::isnan(again[i])) continue;
    } else {
      const bool same = same_bits(y[i], again[i]) && (!by_integers || same_bits(y[i], (*first)[i]));
      if (same && std::abs(y[i] - expected.y[at]) <= tolerance[at]) continue;
    }
    if (show_failure(isa, std::string(problem.kind.name) + " " + precision)) {
      std::printf("%s %s, problem %d: %s\n", isa, precision, number, problem.text().c_str());
      std::printf(
          "  sample %lld, output %lld: %.9g, with %d threads %.9g, elsewhere %.9g, expected %.9g ± "
          "%.3g\n",
          (long long)sample, (long long)output, y[i], kThreads, again[i], (*first)[i],
          expected.y[at], tolerance[at]);
    }
    return;
  }
}

void check_linear(const std::vector<const vq::Kernels*>& isas, int number) {
  Random random(static_cast<uint64_t>(number));
  const Problem problem(random);
  const Reference expected(problem);
  const Kind& kind = problem.kind;
  const struct {
    const char* name;
    vq::Kernel vq::Kernels::*kernel;
    const std::vector<double>& tolerance;
  } precisions[] = {{"exact", kind.exact, expected.exact},
                    {"high", kind.high, expected.high},
                    {"fast", kind.fast, expected.fast}};
  for (const auto& precision : precisions) {
    if (precision.kernel == nullptr) continue;
    Buffer<float> first(0, 0, 0.0f);  // of the first instruction set
    for (const vq::Kernels* kernels : isas) {
      const vq::LinearKernel kernel = (kernels->*precision.kernel).run;
      if (kernel != nullptr)
        check(kernels->name, precision.name, kernel, problem, expected, precision.tolerance, number,
              &first);
    }
  }
}

void check_rounding(const vq::Kernels& kernels, int number) {
  Random random(static_cast<uint64_t>(number));
  const auto rounding = static_cast<vq::Rounding>(random.between(0, 2));
  Buffer<float> from(random.between(0, 100), random.between(0, 3), 0.0f);
  for (int64_t i = 0; i < from.size(); ++i) {
    // Any float; often one that lies half-way, or of a size that weights have.
    uint32_t bits = random.bits();
    if (random.one_in(2)) bits &= 0xfffff000u << random.between(0, 4);
    if (random.one_in(2)) bits = (bits & 0x87ffffffu) | 0x38000000u;
    if (random.one_in(20)) bits |= 0x7f800000u;  // infinite, or not a number
    if (random.one_in(100)) bits |= 0x7fffffffu;
    std::memcpy(&from[i], &bits, sizeof bits);
  }
  Buffer<float> to(from.size(), random.between(0, 3), 0.0f);
  kernels.round(from.data(), from.size(), rounding, to.data());
  for (int64_t i = 0; i < from.size(); ++i) {
    const double expected = rounded(from[i], rounding);
    const bool same = std::isnan(expected)
                          ? std::isnan(to[i])
                          : to[i] == expected && std::signbit(to[i]) == std::signbit(expected);
    if (!same && show_failure(kernels.name, "round"))
      std::printf("%s round %d, problem %d: %a became %a, expected %a\n", kernels.name,
                  static_cast<int>(rounding), number, from[i], to[i], expected);
  }
}

void check_digest(const std::vector<const vq::Kernels*>& isas, int number) {
  Random random(static_cast<uint64_t>(number));
  Buffer<uint8_t> bytes(random.between(0, 300), random.between(0, 3), 0);
  for (int64_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(random.bits());
  const auto digest = [&](const vq::Kernels& kernels) {
    std::vector<uint64_t> words(vq::kDigest);
    kernels.digest(bytes.data(), static_cast<size_t>(bytes.size()), words.data());
    return words;
  };
  const std::vector<uint64_t> first = digest(*isas.front());
  for (const vq::Kernels* kernels : isas)
    if (digest(*kernels) != first && show_failure(kernels->name, "digest"))
      std::printf("%s digest, problem %d: not that of %s\n", kernels->name, number,
                  isas.front()->name);
  if (bytes.size() == 0) return;
  bytes[random.between(0, bytes.size() - 1)] ^= static_cast<uint8_t>(1 << random.between(0, 7));
  for (const vq::Kernels* kernels : isas)
    if (digest(*kernels) == first && show_failure(kernels->name, "digest"))
      std::printf("%s digest, problem %d: the same of other bytes\n", kernels->name, number);
}

void check_packing(int number) {
  Random random(static_cast<uint64_t>(number));
  const Problem problem(random);
  if (!problem.kind.packed) return;
  const vq::Linear& p = problem.linear;
  const vq::NibbleLayout layout(p.rows, p.subspaces, problem.kind.along_out);
  for (int64_t t = 0; t < p.books.stages; ++t) {
    const int64_t size = p.rows * p.subspaces;
    const uint8_t* codes = problem.codes.data() + t * size;
    Buffer<int32_t> packed(layout.size(), 1, -1);
    vq::pack_nibbles(codes, p.rows, p.subspaces, problem.kind.along_out, packed.data());
    Buffer<uint8_t> back(size, 1, 0xff);
    vq::unpack_nibbles(packed.data(), p.rows, p.subspaces, problem.kind.along_out, back.data());
    const bool packs = std::memcmp(packed.data(), problem.packed.data() + t * layout.size(),
                                   static_cast<size_t>(layout.size()) * sizeof(int32_t)) == 0;
    const bool unpacks = std::memcmp(back.data(), codes, static_cast<size_t>(size)) == 0;
    if (!(packs && unpacks) && show_failure("any", "packing"))
      std::printf("%s, problem %d: %s\n", packs ? "unpack_nibbles" : "pack_nibbles", number,
                  problem.text().c_str());
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int problems = count > 1 ? std::atoi(arguments[1]) : 3000;
  const int first = count > 2 ? std::atoi(arguments[2]) : 0;
  std::vector<const vq::Kernels*> isas;
  for (const char* name : {"avx512", "avx2", "neon", "scalar"})
    if (const vq::Kernels* kernels = vq::find_kernels(name)) isas.push_back(kernels);
  for (int number = first; number < first + problems; ++number) {
    check_linear(isas, number);
    for (const vq::Kernels* kernels : isas) check_rounding(*kernels, number);
    check_digest(isas, number);
    check_packing(number);
    if (const int wrong = decodings::check(isas, {kThreads, run_on_threads}, number))
      failures["decode"] += wrong;
    if (const int wrong = convolutions::check(isas, {kThreads, run_on_threads}, number))
      failures["convolutions"] += wrong;
    if (const int wrong = fits::check(isas, number)) failures["fits"] += wrong;
  }
  std::printf("%d problems, %d calls on several threads;", problems, divided);
  for (const vq::Kernels* kernels : isas) std::printf(" %s", kernels->name);
  std::printf("\n");
  for (const auto& [kernel, times] : failures)
    std::printf("%s: %d failures\n", kernel.c_str(), times);
  return failures.empty() ? 0 : 1;
}
