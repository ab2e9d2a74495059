// What SessionOptions.register_custom_ops_library calls.
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <string>

#include "convolution.h"
#include "embedding.h"
#include "linear.h"

namespace vq::ort {
namespace {

template <typename Body>
Status* guarded(const Functions& f, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::exception& error) {
    return f.create_status(kInvalidArgument, error.what());
  }
}

template <typename Kernel>
const Operator* operator_of() {
  static const Operator made = [] {
    constexpr auto one = [](const Operator*) -> int32_t { return 1; };
    Operator o{};
    o.version = kVersion;
    o.name = [](const Operator*) { return Kernel::kName; };
    o.provider = [](const Operator*) -> const char* { return nullptr; };
    o.inputs = [](const Operator*) -> size_t { return 5; };
    o.input_type = [](const Operator*, size_t i) -> int32_t {
      return i == 0 ? Kernel::kInput : i == 1 ? kAny : kFloat;
    };
    o.input_presence = [](const Operator*, size_t i) -> int32_t {
      return i < 3 ? kRequired : kOptional;
    };
    o.input_memory = [](const Operator*, size_t) -> int32_t { return 0; };
    o.outputs = [](const Operator*) -> size_t { return 1; };
    o.output_type = [](const Operator*, size_t) -> int32_t { return kFloat; };
    o.output_presence = [](const Operator*, size_t) -> int32_t { return kRequired; };
    o.least_variadic_inputs = o.variadic_inputs_alike = one;
    o.least_variadic_outputs = o.variadic_outputs_alike = one;
    o.create = [](const Operator*, const Api* api, const Info* info, void** kernel) {
      const Functions f = functions_of(api);
      return guarded(f, [&] { *kernel = new Kernel(f, info); });
    };
    o.compute = [](void* opaque, Context* context) {
      auto& kernel = *static_cast<Kernel*>(opaque);
      return guarded(kernel.functions, [&] { kernel.compute(context); });
    };
    o.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    o.first_opset = o.last_opset = one;
    return o;
  }();
  return &made;
}

// The operators for one ONNX Runtime of this process, made once: sessions go on to use them.
Domain* domain(const Api* api, const Functions& f) {
  static std::mutex mutex;
  static std::map<const Api*, Domain*> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = domains.find(api); found != domains.end()) return found->second;
  Domain* made = nullptr;
  check(f.create_domain("vq_plugin", &made));
  check(f.add_operator(made, operator_of<CodebookLinear>()));
  check(f.add_operator(made, operator_of<CodebookConv>()));
  check(f.add_operator(made, operator_of<CodebookEmbedding>()));
  return domains[api] = made;
}

}  // namespace
}  // namespace vq::ort

extern "C" __attribute__((visibility("default"))) vq::ort::Status* RegisterCustomOps(
    vq::ort::SessionOptions* options, const vq::ort::ApiBase* base) {
  using namespace vq::ort;
  const Api* api = base->get_api(kVersion);
  if (api == nullptr) {
    const std::string message = "the operators of vq_plugin need ONNX Runtime 1.18 or later, this is " +
                                std::string(base->get_version());
    return create_status_of(base->get_api(1))(kFailure, message.c_str());
  }
  const Functions f = functions_of(api);
  return guarded(f, [&] {
    if (vq::chosen_kernels() == nullptr)
      throw std::runtime_error(std::string("VQ_PLUGIN_ISA=") + std::getenv("VQ_PLUGIN_ISA") +
                               " names no kernels of this machine");
    check(f.add_domain(options, domain(api, f)));
  });
}
