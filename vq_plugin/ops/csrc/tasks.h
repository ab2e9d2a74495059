// Tasks of an operator on torch's threads.
#pragma once

#include "library.h"

namespace vq {

// Runs body(0), ..., body(tasks - 1), on all threads where that pays.
template <typename Body>
void run_tasks(int64_t tasks, double picoseconds, Body body) {
  const Pool pool = torch_pool();
  const auto call = [](int64_t task, void* opaque) { (*static_cast<Body*>(opaque))(task); };
  if (pool.threads > 1 && picoseconds > 50e6) return pool.run(tasks, call, &body);
  for (int64_t task = 0; task < tasks; ++task) body(task);
}

}  // namespace vq
