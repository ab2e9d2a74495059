#include "gradient_library.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "tasks.h"
#include "torch_operands.h"

namespace vq {
namespace {

using namespace boxed;

constexpr int64_t kStrip = 8;    // blocks of 8 subspaces: their sums stay in the nearest cache
constexpr int64_t kShares = 16;  // of the rows; a fixed number, as sums are rounded by shares
constexpr double kAdded = 600;   // picoseconds, of every sub-vector

struct Sums {
  const float* grad;  // (rows, length), of any strides
  int64_t row_step, value_step;
  const Tensor* codes;
  int64_t rows, length, subspaces, group;  // rows per group
  int64_t stages, groups, books, k, dim;
  NibbleLayout layout;
  int64_t room() const { return packed(*codes) ? kLanes : 256; }  // for codes that are damaged, too
  // Where sums are short, neighbours go to other ones: an addition would wait for the one before.
  int64_t copies() const { return dim <= 2 ? kNibbles : 1; }

  // The codes of 16 rows and 8 subspaces, row by row.
  void load(int64_t stage, int64_t row_block, int64_t column_block, uint8_t* to) const {
    const int64_t row = row_block * kLanes, column = column_block * kNibbles;
    if (packed(*codes)) {
      const int32_t* from = codes->as<int32_t>() + stage * layout.size() +
                            row_block * layout.row_step() + column_block * layout.column_step();
      for (int64_t r = 0; r < kLanes; ++r) {
        uint64_t eight = static_cast<uint32_t>(from[r]);
        eight = (eight | eight << 16) & 0x0000ffff0000ffff;
        eight = (eight | eight << 8) & 0x00ff00ff00ff00ff;
        eight = (eight | eight << 4) & 0x0f0f0f0f0f0f0f0f;
        std::memcpy(to + r * kNibbles, &eight, sizeof eight);
      }
      return;
    }
    const uint8_t* from = codes->as<uint8_t>() + (stage * rows + row) * subspaces + column;
    const int64_t columns = std::min(kNibbles, subspaces - column);
    for (int64_t r = 0; r < std::min(kLanes, rows - row); ++r, from += subspaces)
      if (columns == kNibbles)  // a move, not a call
        std::memcpy(to + r * kNibbles, from, kNibbles);
      else
        std::memcpy(to + r * kNibbles, from, static_cast<size_t>(columns));
  }
};

// Adds a sub-vector to a sum.
template <int kDim>
void add(const float* values, float* sum) {
  if constexpr (kDim < 4) {
    for (int j = 0; j < kDim; ++j) sum[j] += values[j];
  } else {
    // All of it is read before anything is written: they might overlap, and it would be number by
    // number.
    float some[kDim], all[kDim];
    std::memcpy(some, values, sizeof some);
    std::memcpy(all, sum, sizeof all);
    for (int j = 0; j < kDim; ++j) all[j] += some[j];
    std::memcpy(sum, all, sizeof all);
  }
}

// Adds a tile to sums: the centers of a sub-vector start at base(row) + places[subspace]. kDim is 0
// where it is known at run time only.
template <int kDim, typename Base>
void add_tile(const Sums& s, int64_t row_block, int64_t column_block, const uint8_t* codes,
              const int64_t* places, Base base) {
  const int64_t dim = kDim ? kDim : s.dim;
  const int64_t first = row_block * kLanes, last = std::min(first + kLanes, s.rows);
  const int64_t from = column_block * kNibbles, columns = std::min(kNibbles, s.subspaces - from);
  const int64_t ends = s.length - from * dim;
  for (int64_t r = first; r < last; ++r) {
    const uint8_t* code = codes + (r - first) * kNibbles;
    const float* x = s.grad + r * s.row_step + from * dim * s.value_step;
    float* sums = base(r);
    if constexpr (kDim != 0)
      if (s.value_step == 1 && columns == kNibbles && ends >= kNibbles * dim) {
        for (int64_t c = 0; c < kNibbles; ++c)
          add<kDim>(x + c * kDim, sums + places[c] + code[c] * kDim);
        continue;
      }
    for (int64_t c = 0; c < columns; ++c) {
      float* __restrict sum = sums + places[c] + code[c] * dim;
      const float* __restrict values = x + c * dim * s.value_step;
      const int64_t count = std::min(dim, ends - c * dim);
      if (count == dim && s.value_step == 1)
        for (int64_t j = 0; j < dim; ++j) sum[j] += values[j];
      else
        for (int64_t j = 0; j < count; ++j) sum[j] += values[j * s.value_step];
    }
  }
}

// A book for every subspace: strips of subspaces share nothing.
template <int kDim>
void add_strip(const Sums& s, int64_t stage, int64_t strip, float* out) {
  const int64_t block = strip * kStrip, blocks = std::min(block + kStrip, s.layout.column_blocks);
  const int64_t first = block * kNibbles, last = std::min(blocks * kNibbles, s.subspaces);
  const int64_t book = s.room() * s.dim;
  std::vector<float> sums(static_cast<size_t>((last - first) * book));
  uint8_t codes[kLanes * kNibbles];
  int64_t places[kNibbles];
  for (int64_t i = 0; i < kNibbles; ++i) places[i] = i * book;
  for (int64_t r = 0; r < s.layout.row_blocks; ++r)
    for (int64_t c = block; c < blocks; ++c) {
      s.load(stage, r, c, codes);
      float* base = sums.data() + (c - block) * kNibbles * book;
      add_tile<kDim>(s, r, c, codes, places, [&](int64_t) { return base; });
    }
  for (int64_t at = first; at < last; ++at)
    std::copy_n(sums.data() + (at - first) * book, s.k * s.dim,
                out + (stage * s.books + at) * s.k * s.dim);
}

// Books that subspaces share: shares of the rows have sums of their own.
template <int kDim>
void add_share(const Sums& s, int64_t stage, int64_t share, float* own) {
  const int64_t book = s.room() * s.dim, of_a_group = s.books * book;
  const int64_t first = share * s.layout.row_blocks / kShares,
                last = (share + 1) * s.layout.row_blocks / kShares;
  uint8_t codes[kLanes * kNibbles];
  int64_t places[kNibbles];
  for (int64_t c = 0; c < s.layout.column_blocks; ++c) {
    for (int64_t i = 0; i < kNibbles; ++i)
      places[i] = i % s.copies() * s.groups * of_a_group + (c * kNibbles + i) % s.books * book;
    for (int64_t r = first; r < last; ++r) {
      s.load(stage, r, c, codes);
      add_tile<kDim>(s, r, c, codes, places, [&](int64_t row) {
        return own + (s.groups == 1 ? 0 : row / s.group * of_a_group);
      });
    }
  }
}

template <typename F>
void with_dim(int64_t dim, F f) {
  switch (dim) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 8: return f(std::integral_constant<int, 8>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// grad, codes, shape of the codebooks, along_out, rows per group
void sums_by_center(Value* stack, uint64_t, uint64_t) {
  const Tensor grad = take(stack[0]), codes = take(stack[1]);
  const Numbers shape_of(stack[2]);
  const bool along_out = (stack[3] & 1) != 0;
  const std::vector<int64_t>& n = *shape_of;
  const auto none = [](int64_t size) { return size < 1; };
  if (n.size() != 5 || grad.dims != 2 || !floats(grad) || std::any_of(n.begin(), n.end(), none))
    fail("sums_by_center: expected a float32 matrix and the shape of codebooks");
  const int64_t rows = grad.sizes[0], length = grad.sizes[1], dim = n[4];
  const int64_t subspaces = div_up(length, dim);
  const int64_t given = static_cast<int64_t>(stack[4]), group = given > 0 ? given : rows;
  const NibbleLayout layout(rows, subspaces, along_out);
  const Sums s{grad.as<float>(), grad.strides[0], grad.strides[1], &codes, rows, length, subspaces,
               group, n[0], n[1], n[2], n[3], dim, layout};
  const auto& f = functions();
  const bool fits = packed(codes)
                        ? codes.dtype == f.int32 && codes.numel() == s.stages * s.layout.size()
                        : codes.dtype == f.uint8 && codes.numel() == s.stages * rows * subspaces;
  if (!fits || !codes.contiguous() || s.k > s.room() || s.groups != div_up(rows, group) ||
      subspaces % s.books != 0)
    fail("sums_by_center: codes " + shape(codes) + " are not of such a weight");
  Tensor result = empty(n, f.float32);
  float* out = result.as<float>();
  const double picoseconds = double(s.stages) * double(rows) * double(subspaces) * kAdded;
  const int64_t book = s.room() * dim, own = s.copies() * s.groups * s.books * book;
  with_dim(dim, [&](auto constant) {
    constexpr int kDim = decltype(constant)::value;
    for (int64_t t = 0; t < s.stages; ++t) {
      if (s.books == subspaces && s.groups == 1) {
        run_tasks(div_up(s.layout.column_blocks, kStrip), picoseconds,
            [&](int64_t strip) { add_strip<kDim>(s, t, strip, out); });
        continue;
      }
      std::vector<float> sums(static_cast<size_t>(kShares * own));
      run_tasks(kShares, picoseconds,
          [&](int64_t share) { add_share<kDim>(s, t, share, sums.data() + share * own); });
      const int64_t books = s.groups * s.books, values = s.k * dim;
      std::vector<double> total(static_cast<size_t>(values));
      for (int64_t b = 0; b < books; ++b) {
        std::fill(total.begin(), total.end(), 0.0);
        for (int64_t part = 0; part < kShares * s.copies(); ++part) {
          const float* own_sums = sums.data() + (part * books + b) * book;
          for (int64_t i = 0; i < values; ++i) total[static_cast<size_t>(i)] += own_sums[i];
        }
        std::copy(total.begin(), total.end(), out + (t * books + b) * values);
      }
    }
  });
  give(stack, std::move(result));
}

}  // namespace

void register_gradient_operator(torch_abi::LibraryHandle library) {
  torch_abi::check(functions().library_impl(library, "sums_by_center", sums_by_center),
                   "register an operator");
}

}  // namespace vq
