// What the kernels compute, in plain C++: no Python and no torch, so that they can be tested alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vq {

// Runs body(0), ..., body(tasks - 1), in any order and on any thread.
struct Pool {
  int threads;
  void (*run)(int64_t tasks, void (*body)(int64_t task, void* context), void* context);
};

enum class Rounding : int32_t { none = 0, half = 1, bfloat = 2 };

// A codebook per (stage, group, subspace): center c, coordinate j at
// data + stage·stage_step + group·group_step + subspace·book_step + c·center_step + j·value_step.
struct Books {
  const float* data;
  int64_t stage_step, group_step, book_step, center_step, value_step;  // in floats; 0: shared
  int64_t stages, k, dim;
  Rounding rounding;  // what centers are rounded to before they are used
};

// y = x · W^T + bias for a weight W, (out, in), that is codes into codebooks.
//
// Rows are the outputs where sub-vectors run along the inputs, and the inputs where they run along
// the outputs. See packing.h for the layout of codes.
struct Linear {
  int64_t batch, in, out;
  const float* x;
  int64_t x_row, x_step;  // of one sample to the next, and of one input to the next, in floats
  float* y;               // (batch, out), contiguous
  const float* bias;      // (out) or null
  const float* scale;     // one per row, rounded, or null
  int64_t rows, subspaces;
  int64_t group;  // rows per group of codebooks; a multiple of 16, or rows
  Books books;
  const void* codes;
  double picoseconds;  // about what it takes in all, on one thread
};

using LinearKernel = void (*)(const Linear&, const Pool&);

// The weight itself, (rows, length), or (length, rows) where sub-vectors run along the outputs.
struct Decoding {
  int64_t rows, length, subspaces;
  int64_t group;  // rows per group of codebooks, or rows
  Books books;
  const void* codes;  // packed, or bytes (stages, rows, subspaces)
  bool packed, along_out;
  const float* scale;  // one per row, rounded, or null
  float* weight;
  double picoseconds;  // about what it takes, on one thread
};

// A table whose rows are codes into codebooks.
struct Table {
  const uint8_t* codes;  // row after row, of one stage after the other
  bool nibbles;          // two codes to a byte, the lower half first
  int64_t row_step;      // codes from a row to the next
  int64_t stages, rows, subspaces, length;
  int64_t groups, group, books;  // of codebooks; rows of a group; one codebook, or one a subspace
  int64_t k, dim;
  const float* codebooks;  // (stages, groups, books, k, dim)
  const float* scale;      // one per row, or null
};

// y = the convolution of x with a weight, (out, in / groups, *kernel), that is packed codes into
// books of channels, (stages, out, positions · pieces). Missing dimensions are ones: lines of the first
// are cut into strips, the last is gone through fastest. out / groups is a multiple of 16, or there
// is one group.
struct Convolution {
  int64_t images, in, out, groups;
  int64_t size[3], places[3];  // of inputs, of outputs
  int64_t kernel[3], stride[3], padding[3], dilation[3];
  bool channels_last;  // x and y are (images, places, channels), otherwise (images, channels, places)
  const float* x;
  float* y;
  const float* bias;   // (out) or null
  const float* scale;  // (out), rounded, or null
  Books books;         // one for each of the pieces of a position, or one for all
  const int32_t* codes;
  double picoseconds;  // about what it takes in all, on one thread
};

// About how long a convolution takes on one thread, in picoseconds; see convolution_cost.h.
struct ConvolutionCost {
  double input;           // of each input place
  double table, value;    // of each table of one, and of each value that its centers have
  double block, column;   // of each output place, position and 16 rows; of each 8 of their codes
  double decode, output;  // of each 16 rows and 8 codes, whatever the places; of each output
};

struct ConvolutionKernel {
  const char* name;
  void (*run)(const Convolution&, const Pool&);
  ConvolutionCost cost;
};

// The same of torch's float convolution: of each product, and of each weight.
struct FloatConvolutionCost {
  double product, weight;
};

struct FitKernels;  // see fit.h

// About how long a kernel takes on one thread, in picoseconds; see cost.h.
struct Cost {
  double code, weight, value;    // of each code, weight and value of a center, a sample
  double code_once, value_once;  // of each code, and value of a book, that is read; see cost.h
  double table = 0;              // of each subspace, a sample
};

struct Kernel {
  const char* name;
  LinearKernel run;  // null where this instruction set has none
  Cost cost;
  Cost sixteen;  // from four samples on, where 16 are then taken together; otherwise zeros
};

// The same of torch's float32 layer, of each weight: a sample where samples are multiplied one by
// one; once, and a sample, where they are multiplied in blocks. "Far": more, of a weight in no cache.
struct FloatCost {
  double one_by_one = 80, one_by_one_far = 160;
  double blocks = 220, blocks_far = 0, in_block = 20, in_block_far = 9;
};

// How far a kernel may be from float32 products; see docs/kernels.md.
enum class Precision : int32_t { exact = 0, high = 1, fast = 2 };

constexpr int kDigest = 8;  // words; the same of the same bytes on every instruction set

// The kernels of one instruction set. What is null is computed exactly.
struct Kernels {
  const char* name;
  FloatCost float_layer;
  Kernel lookup_nibbles;  // k <= 16, sub-vectors of 2 or more along the inputs
  Kernel lookup_nibbles_high, lookup_nibbles_fast;
  Kernel scalar_nibbles;  // k <= 16, single weights
  Kernel scalar_nibbles_fast;  // with 8-bit inputs and weights
  Kernel outward_nibbles;  // k <= 16, sub-vectors along the outputs
  Kernel lookup_bytes;     // k <= 256, sub-vectors of 2 or more along the inputs
  Kernel scalar_bytes;     // k <= 256, single weights
  Kernel outward_bytes;    // k <= 256, sub-vectors along the outputs
  // (rows, columns), rows from_row apart -> (columns, rows), rows to_row apart.
  void (*transpose)(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to,
                    int64_t to_row);
  void (*digest)(const void* from, size_t bytes, uint64_t* to);
  void (*round)(const float* from, int64_t n, Rounding, float* to);
  void (*decode)(const Decoding&, const Pool&);  // k <= 256
  // Rows that the table has -> (count, length).
  void (*look_up)(const Table&, const int64_t* rows, int64_t count, float* to);
  ConvolutionKernel convolve[3];  // by Precision; k <= 16
  FloatConvolutionCost float_convolution;
  const FitKernels* fit;
};

// The fastest kernels that this machine runs.
const Kernels* best_kernels();

// By name; null where this machine or this build lacks them.
const Kernels* find_kernels(const char* name);

// Those that VQ_PLUGIN_ISA names, or the fastest; null where this machine has none of that name.
// Operators of ExecuTorch take them out of the library for ONNX Runtime.
__attribute__((visibility("default"))) const Kernels* chosen_kernels();

}  // namespace vq
