#include "step_library.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tasks.h"
#include "torch_operands.h"

namespace vq {
namespace {

using namespace boxed;

constexpr int64_t kTask = 1 << 14;    // numbers; a fixed count, as sums are rounded by tasks
constexpr int64_t kShares = 16;       // of sums of kinds; a fixed number, too
constexpr int64_t kBlock = 256;       // numbers whose intermediate values stay in the nearest cache
constexpr int64_t kSums = 8;          // side by side
constexpr double kNumber = 1000;      // picoseconds, of each
constexpr float kWhole = 12582912.f;  // 1.5 * 2^23, beside which floats have no fraction

void expect(const Tensor& tensor, const char* what, int64_t numel) {
  if (!floats(tensor) || !tensor.contiguous() || tensor.numel() != numel)
    fail(std::string(what) + " " + shape(tensor) + " is not dense float32 of " +
         std::to_string(numel) + " numbers");
}

int64_t expect_reach(int64_t reach) {
  if (reach < 1 || reach >= 1 << 20) fail("numbers reach to " + std::to_string(reach));
  return reach;
}

// The nearest whole number from -reach to reach, ties to even; NaN stays.
inline float whole(float place, float reach) {
  // One choice after the other, which loops make side by side.
  const float above = place < -reach ? -reach : place;
  const float inside = above > reach ? reach : above;
  return (inside + kWhole) - kWhole;
}

template <typename Body>
void in_tasks(int64_t count, Body body) {
  run_tasks(div_up(count, kTask), double(count) * kNumber, [&](int64_t task) {
    body(task, task * kTask, std::min((task + 1) * kTask, count));
  });
}

// Where the numbers of a block are in a table that starts at that of -reach; -1: of NaN.
inline void find_places(const float* values, int64_t count, float step, float reach, int32_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    const float place = whole(values[i] / step, reach) + reach;
    to[i] = static_cast<int32_t>(place >= 0 ? place : -1.0f);
  }
}

// Calls body(first, count, places) for all blocks of a task.
template <typename Body>
void in_blocks(const float* values, int64_t first, int64_t last, float step, float reach,
               Body body) {
  int32_t places[kBlock];
  for (; first < last; first += kBlock) {
    const int64_t count = std::min(kBlock, last - first);
    find_places(values + first, count, step, reach, places);
    body(first, count, places);
  }
}

// weight, latent, centers, step
void write_multiples(Value* stack, uint64_t, uint64_t) {
  const Tensor weight = take(stack[0]), latent = take(stack[1]), centers = take(stack[2]);
  const auto step = static_cast<float>(take_double(stack[3]));
  const int64_t count = latent.numel(), reach = expect_reach((centers.numel() - 1) / 2);
  expect(latent, "latent", count);
  expect(weight, "weight", count);
  expect(centers, "centers", 2 * reach + 1);
  const float *from = latent.as<float>(), *table = centers.as<float>();
  float* to = weight.as<float>();
  in_tasks(count, [=](int64_t, int64_t first, int64_t last) {
    in_blocks(from, first, last, step, static_cast<float>(reach),
              [=](int64_t at, int64_t some, const int32_t* places) {
                for (int64_t i = 0; i < some; ++i)
                  to[at + i] = places[i] < 0 ? from[at + i] : table[places[i]];
              });
  });
}

// Sums over the numbers of every kind, in an order that threads do not change; body(at, sum) adds
// a number to that of its kind. Neighbours have sums of their own: most are of one kind, and an
// addition would wait for the one before.
template <typename Body>
Tensor sums_of_kinds(const Tensor& latent, float step, int64_t reach, Body body) {
  const int64_t count = latent.numel(), kinds = 2 * reach + 1;
  const int64_t tasks = std::min(div_up(count, kTask), kShares);
  std::vector<double> sums(static_cast<size_t>(tasks * kSums * kinds), 0.0);
  const float* from = latent.as<float>();
  run_tasks(tasks, double(count) * kNumber, [&](int64_t task) {
    double* own = sums.data() + task * kSums * kinds;
    in_blocks(from, count * task / tasks, count * (task + 1) / tasks, step,
              static_cast<float>(reach), [&](int64_t at, int64_t some, const int32_t* places) {
                for (int64_t i = 0; i < some; ++i)
                  if (places[i] >= 0) body(at + i, own + i % kSums * kinds + places[i]);
              });
  });
  Tensor result = empty({kinds}, functions().float64);
  double* to = result.as<double>();
  std::fill(to, to + kinds, 0.0);
  for (int64_t part = 0; part < tasks * kSums; ++part)
    for (int64_t kind = 0; kind < kinds; ++kind)
      to[kind] += sums[static_cast<size_t>(part * kinds + kind)];
  return result;
}

// latent, step, reach
void count_multiples(Value* stack, uint64_t, uint64_t) {
  const Tensor latent = take(stack[0]);
  const auto step = static_cast<float>(take_double(stack[1]));
  const int64_t reach = expect_reach(static_cast<int64_t>(stack[2]));
  expect(latent, "latent", latent.numel());
  give(stack, sums_of_kinds(latent, step, reach, [](int64_t, double* sum) { *sum += 1; }));
}

// grad, latent, step, reach
void sums_of_multiples(Value* stack, uint64_t, uint64_t) {
  const Tensor grad = take(stack[0]), latent = take(stack[1]);
  const auto step = static_cast<float>(take_double(stack[2]));
  const int64_t reach = expect_reach(static_cast<int64_t>(stack[3]));
  expect(latent, "latent", latent.numel());
  expect(grad, "grad", latent.numel());
  const float* values = grad.as<float>();
  give(stack, sums_of_kinds(latent, step, reach,
                            [=](int64_t at, double* sum) { *sum += double(values[at]); }));
}

// grad, latent, pulls, step
void pull_multiples(Value* stack, uint64_t, uint64_t) {
  const Tensor grad = take(stack[0]), latent = take(stack[1]), pulls = take(stack[2]);
  const auto step = static_cast<float>(take_double(stack[3]));
  const int64_t count = latent.numel(), sizes = pulls.numel();
  expect(latent, "latent", count);
  expect(grad, "grad", count);
  expect(pulls, "pulls", sizes);
  const auto reach = static_cast<float>(expect_reach(sizes - 1));
  const float* from = latent.as<float>();
  const float* table = pulls.as<float>();
  float* to = grad.as<float>();
  std::vector<float> over_step(table, table + sizes);
  for (float& pull : over_step) pull /= step;
  std::vector<double> sums(static_cast<size_t>(div_up(count, kTask)), 0.0);
  const float* over = over_step.data();
  double* of_tasks = sums.data();
  // Copies, which loops need not read again.
  in_tasks(count, [=](int64_t task, int64_t first, int64_t last) {
    float places[kBlock], changes[kBlock], pulled[kBlock], moved[kBlock], terms[kBlock];
    int32_t sizes_of[kBlock];
    // An addition to one sum would wait for the one before.
    double lanes[kSums] = {};
    for (; first < last; first += kBlock) {
      const int64_t some = std::min(kBlock, last - first);
      const float* values = from + first;
      float* __restrict grads = to + first;
      for (int64_t i = 0; i < some; ++i) {
        places[i] = values[i] / step;
        const float size = std::fabs(places[i]);
        // NaN has the pull of the last.
        sizes_of[i] = static_cast<int32_t>(size < reach ? size : reach);
      }
      for (int64_t i = 0; i < some; ++i) changes[i] = whole(places[i], reach) - places[i];
      for (int64_t i = 0; i < some; ++i) {
        pulled[i] = table[sizes_of[i]];
        moved[i] = over[sizes_of[i]];
      }
      // A pull has the sign of its place.
      for (int64_t i = 0; i < some; ++i)
        terms[i] = grads[i] * changes[i] * step - pulled[i] * std::fabs(places[i]);
      for (int64_t i = 0; i < some; ++i) grads[i] += std::copysign(moved[i], places[i]);
      std::fill(terms + some, terms + kBlock, 0.0f);
      for (int64_t i = 0; i < kBlock; i += kSums)
        for (int64_t lane = 0; lane < kSums; ++lane) lanes[lane] += double(terms[i + lane]);
    }
    of_tasks[task] = std::accumulate(lanes, lanes + kSums, 0.0);
  });
  Tensor slope = empty({}, functions().float32);
  *slope.as<float>() = static_cast<float>(std::accumulate(sums.begin(), sums.end(), 0.0));
  give(stack, std::move(slope));
}

}  // namespace

void register_step_operators(torch_abi::LibraryHandle library) {
  const auto add = [&](const char* name, torch_abi::Kernel kernel) {
    torch_abi::check(functions().library_impl(library, name, kernel), "register an operator");
  };
  add("write_multiples", write_multiples);
  add("count_multiples", count_multiples);
  add("sums_of_multiples", sums_of_multiples);
  add("pull_multiples", pull_multiples);
}

}  // namespace vq
