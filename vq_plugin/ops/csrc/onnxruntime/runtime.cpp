#include "runtime.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "../operands.h"

namespace vq::ort {
namespace {

struct Running {
  const Functions* functions;
  const Context* context;
};
thread_local Running running;

void run(int64_t tasks, void (*body)(int64_t, void*), void* context) {
  struct Call {
    void (*body)(int64_t, void*);
    void* context;
  } call{body, context};
  const auto one = [](void* opaque, size_t task) {
    const Call& c = *static_cast<Call*>(opaque);
    c.body(static_cast<int64_t>(task), c.context);
  };
  check(running.functions->parallel_for(running.context, one, static_cast<size_t>(tasks), 0, &call));
}

int64_t nanoseconds() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// Tasks that wait for each other, so that each thread gets one; no longer than a thread takes to wake.
struct Meeting {
  static constexpr int64_t kPatience = 100'000;

  int64_t number;
  int expected;
  std::atomic<int> arrived{0};
  std::atomic<int64_t> last{0};

  void join() {
    static thread_local int64_t joined = 0;
    if (joined == number) return;
    joined = number;
    last = nanoseconds();
    ++arrived;
    while (arrived < expected && nanoseconds() - last < kPatience) std::this_thread::yield();
  }
};

int count_threads(const Functions& f, const Context* context) {
  const auto most = static_cast<int>(std::thread::hardware_concurrency());
  if (most <= 1) return 1;
  static std::atomic<int64_t> meetings{0};
  Meeting meeting{++meetings, most};
  const auto join = [](void* opaque, size_t) { static_cast<Meeting*>(opaque)->join(); };
  check(f.parallel_for(context, join, static_cast<size_t>(most), 0, &meeting));
  return meeting.arrived;
}

}  // namespace

Tensor::Tensor(const Functions& f, const Value* value) {
  if (value == nullptr) return;
  struct Shape {
    const Functions& f;
    ShapeInfo* info = nullptr;
    ~Shape() { f.release_shape(info); }
  } shape{f};
  check(f.get_shape(value, &shape.info));
  size_t count = 0;
  check(f.get_dimensions_count(shape.info, &count));
  dims = static_cast<int64_t>(count);
  if (dims > kMostDims) fail("vq_plugin: a tensor of " + std::to_string(dims) + " dimensions");
  check(f.get_dimensions(shape.info, sizes, count));
  check(f.get_element_type(shape.info, &type));
  check(f.get_data(const_cast<Value*>(value), &data));
  int64_t step = 1;
  for (int64_t i = dims; i-- > 0; step *= sizes[i]) strides[i] = step;
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int64_t i = 0; i < dims; ++i) n *= sizes[i];
  return n;
}

Tensor input(const Functions& f, const Context* context, size_t index) {
  const Value* value = nullptr;
  check(f.get_input(context, index, &value));
  return Tensor(f, value);
}

Operands::Operands(const Functions& f, const Context* context) {
  const auto get = [&](size_t index) { return ort::input(f, context, index); };
  input = get(0), codes = get(1), codebooks = get(2), scale = get(3), bias = get(4);
  const bool nibbles = codes.type == kUint4 && codes.dims == 5 && codes.sizes[4] == kNibbles;
  if (nibbles) codes.dims = 4;
  const int64_t most = nibbles ? 16 : 256;
  if (!nibbles && (codes.type != kUint8 || codes.dims != 3))
    fail("vq_plugin: codes are UINT4 of 5 dimensions, the last of 8, or UINT8 of 3");
  if (codebooks.dims == 5 && codebooks.sizes[3] > most)
    fail("vq_plugin: codebooks " + shape(codebooks) + " have more centers than codes tell apart");
}

float* output(const Functions& f, Context* context, const std::vector<int64_t>& sizes) {
  Value* value = nullptr;
  void* data = nullptr;
  check(f.get_output(context, 0, sizes.data(), sizes.size(), &value));
  check(f.get_data(value, &data));
  return static_cast<float*>(data);
}

int64_t number(const Functions& f, const Info* info, const char* name, int64_t otherwise) {
  int64_t value = otherwise;
  if (Status* missing = f.get_number(info, name, &value)) {
    f.release_status(missing);
    return otherwise;
  }
  return value;
}

std::vector<int64_t> numbers(const Functions& f, const Info* info, const char* name) {
  size_t count = 0;
  check(f.get_numbers(info, name, nullptr, &count));
  std::vector<int64_t> values(count);
  check(f.get_numbers(info, name, values.data(), &count));
  return values;
}

Precision precision(const Functions& f, const Info* info) {
  const int64_t value = number(f, info, "precision", 0);
  if (value < 0 || value > 2)
    fail("vq_plugin: precision is 0 (exact), 1 (high) or 2 (fast), got " + std::to_string(value));
  return static_cast<Precision>(value);
}

Pool Threads::pool(const Functions& f, const Context* context) {
  if (known_ == 0) known_ = count_threads(f, context);
  running = {&f, context};
  return {known_, run};
}

}  // namespace vq::ort
