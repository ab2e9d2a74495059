// A program in C++ that runs a codebook layer in ONNX Runtime, from several threads at once.
//
//   onnxruntime_test LIBONNXRUNTIME OPERATOR_LIBRARY FOLDER
//
// FOLDER has model.onnx and sizes.json ([batch, in, out]), and input.bin and output.bin: floats. The
// functions that it calls are places in ONNX Runtime's table, as in csrc/onnxruntime/abi.h.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

struct ApiBase {
  void* const* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

void* const* api;

template <typename Result, typename... Arguments>
Result call(int place, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(api[place])(arguments...);
}

// A function that gives a status.
template <typename... Arguments>
void check(int place, Arguments... arguments) {
  constexpr int kGetErrorMessage = 2;
  if (void* status = call<void*>(place, arguments...)) {
    std::printf("%s\n", call<const char*>(kGetErrorMessage, static_cast<const void*>(status)));
    std::exit(1);
  }
}

enum Place {
  kCreateEnv = 3,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetIntraOpNumThreads = 24,
  kCreateTensorWithData = 49,
  kGetTensorMutableData = 51,
  kCreateCpuMemoryInfo = 69,
  kReleaseEnv = 92,
  kReleaseMemoryInfo = 94,
  kReleaseSession = 95,
  kReleaseValue = 96,
  kReleaseSessionOptions = 100,
  kRegisterCustomOpsLibrary = 228,
};

std::vector<float> floats(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream all;
  all << file.rdbuf();
  const std::string bytes = all.str();
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

struct Problem {
  std::vector<float> input, output;
  int64_t shape[2];

  bool solved_by(void* session) const {
    void *memory = nullptr, *value = nullptr, *result = nullptr;
    check(kCreateCpuMemoryInfo, int32_t{0}, int32_t{0}, &memory);
    constexpr int32_t kFloat = 1;
    check(kCreateTensorWithData, const_cast<const void*>(memory),
          const_cast<void*>(static_cast<const void*>(input.data())), input.size() * sizeof(float),
          &shape[0], size_t{2}, kFloat, &value);
    const char *input_name = "input", *output_name = "output";
    check(kRun, session, static_cast<const void*>(nullptr), &input_name, &value, size_t{1},
          &output_name, size_t{1}, &result);
    void* found = nullptr;
    check(kGetTensorMutableData, result, &found);
    const bool same = std::memcmp(found, output.data(), output.size() * sizeof(float)) == 0;
    call<void>(kReleaseValue, result);
    call<void>(kReleaseValue, value);
    call<void>(kReleaseMemoryInfo, memory);
    return same;
  }
};

}  // namespace

int main(int, char** arguments) {
  // All symbols at once: the operator library needs neither Python nor torch.
  void* runtime = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
  void* operators = dlopen(arguments[2], RTLD_NOW);
  if (runtime == nullptr || operators == nullptr) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  const auto* base = reinterpret_cast<const ApiBase* (*)()>(dlsym(runtime, "OrtGetApiBase"))();
  api = base->get_api(18);
  const std::string folder = arguments[3];
  long long batch = 0, in = 0, out = 0;
  std::string sizes;
  std::getline(std::ifstream(folder + "/sizes.json"), sizes);
  std::sscanf(sizes.c_str(), "[%lld, %lld, %lld]", &batch, &in, &out);
  const Problem problem{floats(folder + "/input.bin"), floats(folder + "/output.bin"), {batch, in}};

  void* env = nullptr;
  check(kCreateEnv, int32_t{3}, "test", &env);
  for (const int threads : {1, 2, 4}) {
    void *options = nullptr, *session = nullptr;
    check(kCreateSessionOptions, &options);
    check(kSetIntraOpNumThreads, options, threads);
    check(kRegisterCustomOpsLibrary, options, static_cast<const char*>(arguments[2]));
    check(kCreateSession, static_cast<const void*>(env), (folder + "/model.onnx").c_str(),
          static_cast<const void*>(options), &session);
    bool same[4] = {};
    std::vector<std::thread> callers;
    for (bool& own : same)
      callers.emplace_back([&own, &problem, session] {
        own = true;
        for (int turn = 0; turn < 20; ++turn) own = own && problem.solved_by(session);
      });
    for (auto& caller : callers) caller.join();
    call<void>(kReleaseSession, session);
    call<void>(kReleaseSessionOptions, options);
    for (const bool own : same)
      if (!own) {
        std::printf("other bits with %d threads\n", threads);
        return 1;
      }
  }
  call<void>(kReleaseEnv, env);
  std::printf("ONNX Runtime %s: the same bits\n", base->get_version());
  return 0;
}
