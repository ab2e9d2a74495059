// A product at every place of images: a 1x1 convolution, or one whose patches were laid out.
#pragma once

#include <algorithm>
#include <vector>

#include "cost.h"
#include "packing.h"

namespace vq {

// Some places of an image: (in, places), lines `step` floats apart.
struct Columns {
  const float* data;
  int64_t step;
};

// (images, in, places) -> (images, out, places). Some places at a time become rows for the kernel,
// which stay in the cache. `columns(image, first, count)` gives those that are next.
template <typename Give>
void multiply_strips(const Kernels& kernels, const Kernel& kernel, const Linear& layer,
                     int64_t images, int64_t places, const Pool& pool, const Give& columns) {
  constexpr int64_t kStrip = 128;
  const int64_t strips = div_up(places, kStrip), tasks = images * strips;
  const auto run_strip = [&](int64_t task, const Pool& threads) {
    static thread_local std::vector<float> inputs, outputs;
    const int64_t image = task / strips, first = task % strips * kStrip;
    Linear p = layer;
    p.batch = std::min(kStrip, places - first);
    p.picoseconds = picoseconds(kernel, p);
    inputs.resize(static_cast<size_t>(p.batch * p.in));
    outputs.resize(static_cast<size_t>(p.batch * p.out));
    const Columns from = columns(image, first, p.batch);
    kernels.transpose(from.data, from.step, p.in, p.batch, inputs.data(), p.in);
    p.x = inputs.data();
    p.x_row = p.in;
    p.x_step = 1;
    p.y = outputs.data();
    kernel.run(p, threads);
    kernels.transpose(p.y, p.out, p.batch, p.out, layer.y + image * p.out * places + first, places);
  };
  if (tasks < pool.threads) {
    for (int64_t task = 0; task < tasks; ++task) run_strip(task, pool);
    return;
  }
  const auto alone = [](int64_t task, void* run) {
    (*static_cast<decltype(run_strip)*>(run))(task, Pool{1, nullptr});
  };
  pool.run(tasks, alone, const_cast<void*>(static_cast<const void*>(&run_strip)));
}

}  // namespace vq
