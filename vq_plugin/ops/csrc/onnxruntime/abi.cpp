#include "abi.h"

namespace vq::ort {
namespace {

template <typename Function>
void find(const Api* api, int place, Function* function) {
  *function = reinterpret_cast<const Function*>(api)[place];
}

}  // namespace

Functions functions_of(const Api* api) {
  Functions found{};
  found.create_status = create_status_of(api);
  find(api, 26, &found.create_domain);
  find(api, 27, &found.add_operator);
  find(api, 28, &found.add_domain);
  find(api, 51, &found.get_data);
  find(api, 60, &found.get_element_type);
  find(api, 61, &found.get_dimensions_count);
  find(api, 62, &found.get_dimensions);
  find(api, 65, &found.get_shape);
  find(api, 86, &found.get_number);
  find(api, 90, &found.get_input);
  find(api, 91, &found.get_output);
  find(api, 93, &found.release_status);
  find(api, 99, &found.release_shape);
  find(api, 163, &found.get_numbers);
  find(api, 274, &found.parallel_for);
  return found;
}

decltype(Functions::create_status) create_status_of(const Api* api) {
  decltype(Functions::create_status) found = nullptr;
  find(api, 0, &found);
  return found;
}

}  // namespace vq::ort
