// The part of ONNX Runtime's C interface that is used here. Its functions are a table that only ever
// grows at the end, so a place in it is the same in every later version: neither its headers nor its
// library are needed to build. Since ONNX Runtime 1.18.
// https://onnxruntime.ai/docs/api/c/struct_ort_api.html
#pragma once

#include <cstddef>
#include <cstdint>

namespace vq::ort {

constexpr uint32_t kVersion = 18;  // the first with a parallel_for for operators

// Opaque but for the tables.
struct Api;
struct Context;  // of one run of an operator
struct Domain;
struct Info;  // of a node
struct SessionOptions;
struct ShapeInfo;
struct Status;  // null: all went well
struct Value;

struct ApiBase {
  const Api* (*get_api)(uint32_t version);  // null where it is older
  const char* (*get_version)();
};

enum ErrorCode : int32_t { kFailure = 1, kInvalidArgument = 2 };
enum ElementType : int32_t { kAny = 0, kFloat = 1, kUint8 = 2, kInt64 = 7, kUint4 = 21 };
enum Presence : int32_t { kRequired = 0, kOptional = 1 };

struct Functions {
  Status* (*create_status)(int32_t code, const char* message);
  Status* (*create_domain)(const char* name, Domain**);
  Status* (*add_operator)(Domain*, const struct Operator*);
  Status* (*add_domain)(SessionOptions*, Domain*);
  Status* (*get_data)(Value*, void**);
  Status* (*get_element_type)(const ShapeInfo*, int32_t*);
  Status* (*get_dimensions_count)(const ShapeInfo*, size_t*);
  Status* (*get_dimensions)(const ShapeInfo*, int64_t*, size_t);
  Status* (*get_shape)(const Value*, ShapeInfo**);
  Status* (*get_number)(const Info*, const char* name, int64_t*);
  Status* (*get_input)(const Context*, size_t index, const Value**);
  Status* (*get_output)(Context*, size_t index, const int64_t* sizes, size_t dims, Value**);
  void (*release_status)(Status*);
  void (*release_shape)(ShapeInfo*);
  Status* (*get_numbers)(const Info*, const char* name, int64_t*, size_t*);
  Status* (*parallel_for)(const Context*, void (*)(void*, size_t task), size_t tasks, size_t batches,
                          void*);
};

// Of a table of version 18 or later.
Functions functions_of(const Api*);

// Of a table of any version.
decltype(Functions::create_status) create_status_of(const Api*);

// An operator as ONNX Runtime calls it, in the layout of version 18.
struct Operator {
  uint32_t version;
  void* (*unused_create)(const Operator*, const Api*, const Info*);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);  // null: the CPU
  int32_t (*input_type)(const Operator*, size_t);
  size_t (*inputs)(const Operator*);
  int32_t (*output_type)(const Operator*, size_t);
  size_t (*outputs)(const Operator*);
  void (*unused_compute)(void*, Context*);
  void (*destroy)(void*);
  int32_t (*input_presence)(const Operator*, size_t);
  int32_t (*output_presence)(const Operator*, size_t);
  int32_t (*input_memory)(const Operator*, size_t);  // 0: where the operator runs
  int32_t (*least_variadic_inputs)(const Operator*);
  int32_t (*variadic_inputs_alike)(const Operator*);
  int32_t (*least_variadic_outputs)(const Operator*);
  int32_t (*variadic_outputs_alike)(const Operator*);
  Status* (*create)(const Operator*, const Api*, const Info*, void**);
  Status* (*compute)(void*, Context*);
  Status* (*infer_shape)(const Operator*, void*);  // null: unknown
  int32_t (*first_opset)(const Operator*);
  int32_t (*last_opset)(const Operator*);
  size_t (*in_place)(int32_t**, int32_t**);
  void (*release_in_place)(int32_t*, int32_t*);
  size_t (*aliases)(int32_t**, int32_t**);
  void (*release_aliases)(int32_t*, int32_t*);
};

}  // namespace vq::ort
