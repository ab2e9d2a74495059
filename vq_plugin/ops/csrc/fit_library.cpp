#include "fit_library.h"

#include <initializer_list>

#include "boxed.h"
#include "fit.h"
#include "fit_patches.h"
#include "fit_scalar.h"
#include "fit_sweep.h"
#include "library.h"

namespace vq {
namespace {

using namespace boxed;

const FitKernels& kernels() { return *kernels_in_use.load()->fit; }

// A dense tensor of this dtype and size; a size of -1 may be anything.
void expect(const Tensor& tensor, const char* what, int32_t dtype,
            std::initializer_list<int64_t> sizes) {
  bool fits = tensor.dims == static_cast<int64_t>(sizes.size()) && tensor.dtype == dtype &&
              tensor.contiguous();
  int64_t i = 0;
  for (const int64_t size : sizes) {
    fits = fits && (size < 0 || tensor.sizes[i] == size);
    ++i;
  }
  if (!fits) fail(std::string(what) + " " + shape(tensor) + " has another shape, dtype or layout");
}

// Points of some books, (books, n, dim), with an importance of the same shape; of any strides.
class Books {
 public:
  Books(Tensor x, Tensor importance) : x_(std::move(x)), importance_(std::move(importance)) {
    if (x_.dims != 3 || x_.dtype != functions().float32)
      fail("points " + shape(x_) + " are not float32, (books, n, dim)");
    if (importance_ && (importance_.dims != 3 || importance_.dtype != functions().float32 ||
                        !std::equal(x_.sizes, x_.sizes + 3, importance_.sizes)))
      fail("importance " + shape(importance_) + " is not float32 like the points " + shape(x_));
  }

  int64_t books() const { return x_.sizes[0]; }
  int64_t n() const { return x_.sizes[1]; }
  int64_t dim() const { return x_.sizes[2]; }
  bool weighted() const { return static_cast<bool>(importance_); }

  Points operator[](int64_t book) const {
    Points points{
        n(), dim(), x_.as<float>() + book * x_.strides[0], x_.strides[1], x_.strides[2], nullptr,
        0,   0};
    if (weighted()) {
      points.weight = importance_.as<float>() + book * importance_.strides[0];
      points.weight_point = importance_.strides[1];
      points.weight_step = importance_.strides[2];
    }
    return points;
  }

 private:
  Tensor x_, importance_;
};

// Centers of the same books, (books, k, dim); gives k.
int64_t expect_centers(const Tensor& centers, const Books& books) {
  expect(centers, "centers", functions().float32, {books.books(), -1, books.dim()});
  const int64_t k = centers.sizes[1];
  if (k < 1 || k > kMostCenters) fail(std::to_string(k) + " centers are not 1 to 256");
  return k;
}

// Codes of the same books, (books, n), all below k.
void expect_codes(const Tensor& codes, const Books& books, int64_t k) {
  expect(codes, "codes", functions().uint8, {books.books(), books.n()});
  if (k < 1 || k > kMostCenters) fail(std::to_string(k) + " centers are not 1 to 256");
  const uint8_t* data = codes.as<uint8_t>();
  uint8_t most = 0;
  for (int64_t i = 0; i < codes.numel(); ++i) most = std::max(most, data[i]);
  if (most >= k)
    fail("code " + std::to_string(most) + " is outside " + std::to_string(k) + " centers");
}

// x, importance, centers
void nearest_centers(Value* stack, uint64_t, uint64_t) {
  const Books books(take(stack[0]), take_optional(stack[1]));
  const Tensor centers = take(stack[2]);
  const int64_t k = expect_centers(centers, books), n = books.n();
  Tensor codes = empty({books.books(), n}, functions().uint8);
  Tensor distance = empty({books.books(), n}, functions().float32);
  for (int64_t b = 0; b < books.books(); ++b)
    assign(kernels(), books[b], k, centers.as<float>() + b * k * books.dim(),
           codes.as<uint8_t>() + b * n, distance.as<float>() + b * n);
  give(stack, std::move(codes));
  give(stack + 1, std::move(distance));
}

// x, importance, codes, k
void sums_by_code(Value* stack, uint64_t, uint64_t) {
  const Books books(take(stack[0]), take_optional(stack[1]));
  const Tensor codes = take(stack[2]);
  const auto k = static_cast<int64_t>(stack[3]);
  expect_codes(codes, books, k);
  const int64_t width = books.weighted() ? books.dim() : 1;
  Tensor sums = empty({books.books(), k, books.dim()}, functions().float64);
  Tensor mass = empty({books.books(), k, width}, functions().float64);
  for (int64_t b = 0; b < books.books(); ++b)
    sum_by_code(books[b], codes.as<uint8_t>() + b * books.n(), k,
                sums.as<double>() + b * k * books.dim(), mass.as<double>() + b * k * width);
  give(stack, std::move(sums));
  give(stack + 1, std::move(mass));
}

// x, importance, centers, iterations, tolerance
void lloyd_books(Value* stack, uint64_t, uint64_t) {
  const Books books(take(stack[0]), take_optional(stack[1]));
  const Tensor start = take(stack[2]);
  const auto iterations = static_cast<int>(static_cast<int64_t>(stack[3]));
  const double tolerance = take_double(stack[4]);
  const int64_t k = expect_centers(start, books), n = books.n();
  Tensor centers = empty({books.books(), k, books.dim()}, functions().float32);
  Tensor codes = empty({books.books(), n}, functions().uint8);
  std::copy_n(start.as<float>(), start.numel(), centers.as<float>());
  for (int64_t b = 0; b < books.books(); ++b)
    lloyd(kernels(), books[b], k, iterations, tolerance, centers.as<float>() + b * k * books.dim(),
          codes.as<uint8_t>() + b * n);
  give(stack, std::move(centers));
  give(stack + 1, std::move(codes));
}

// x, mass, first, draws
void seed_centers(Value* stack, uint64_t, uint64_t) {
  const Books books(take(stack[0]), Tensor());
  const Tensor mass = take(stack[1]), first = take(stack[2]), draws = take(stack[3]);
  expect(mass, "mass", functions().float32, {books.books(), books.n()});
  expect(first, "first draws", functions().float64, {books.books(), 1});
  expect(draws, "draws", functions().float64, {-1, books.books(), -1});
  const int64_t k = draws.sizes[0] + 1, trials = draws.sizes[2];
  if (books.n() < 1 || trials < 1) fail("seed_centers: nothing to draw from");
  Tensor centers = empty({books.books(), k, books.dim()}, functions().float32);
  Tensor found = empty({books.books()}, functions().int64);
  for (int64_t b = 0; b < books.books(); ++b) {
    const Draws numbers{first.as<double>()[b], draws.as<double>() + b * trials,
                        books.books() * trials, trials};
    found.as<int64_t>()[b] = seed(kernels(), books[b], mass.as<float>() + b * books.n(), k, numbers,
                                  centers.as<float>() + b * k * books.dim());
  }
  give(stack, std::move(centers));
  give(stack + 1, std::move(found));
}

// x, importance, codes, k, sweeps
void exchange_codes(Value* stack, uint64_t, uint64_t) {
  const Books books(take(stack[0]), take_optional(stack[1]));
  const Tensor before = take(stack[2]);
  const auto k = static_cast<int64_t>(stack[3]);
  const auto sweeps = static_cast<int>(static_cast<int64_t>(stack[4]));
  expect_codes(before, books, k);
  Tensor codes = empty({books.books(), books.n()}, functions().uint8);
  std::copy_n(before.as<uint8_t>(), before.numel(), codes.as<uint8_t>());
  for (int64_t b = 0; b < books.books(); ++b)
    exchange(kernels(), books[b], k, sweeps, codes.as<uint8_t>() + b * books.n());
  give(stack, std::move(codes));
}

// inner, pull, base, inverse, factor, centers, scored, before, kept, along_out, padding, per_step,
// first, of_group, rows
void sweep_block_of(Value* stack, uint64_t, uint64_t) {
  const Tensor inner = take(stack[0]), pull = take(stack[1]), base = take(stack[2]),
               inverse = take(stack[3]), factor = take_optional(stack[4]), centers = take(stack[5]),
               scored = take(stack[6]), before = take_optional(stack[7]),
               kept = take_optional(stack[8]);
  const bool along_out = (stack[9] & 1) != 0;
  const auto padding = static_cast<int64_t>(stack[10]), per_step = static_cast<int64_t>(stack[11]),
             first = static_cast<int64_t>(stack[12]), of_group = static_cast<int64_t>(stack[13]),
             rows = static_cast<int64_t>(stack[14]);
  const int32_t float32 = functions().float32;
  expect(pull, "pull", float32, {-1, -1, -1});
  expect(inverse, "inverse", float32, {pull.sizes[0], -1, -1, -1});
  expect(centers, "centers", float32, {-1, -1, -1, -1});
  const int64_t groups = pull.sizes[0], steps = inverse.sizes[1];
  Block block{};
  block.steps = steps, block.outputs = pull.sizes[2], block.dim = centers.sizes[3];
  block.along_out = along_out, block.padding = padding;
  block.stages = centers.sizes[0], block.books = centers.sizes[1], block.k = centers.sizes[2];
  block.per_step = per_step, block.rows = rows;
  const int64_t size = block.size(), inputs = block.inputs();
  if (block.dim < 1 || block.stages < 1 || block.k < 1 || block.k > kMostCenters)
    fail("centers " + shape(centers) + " are not 1 to 256 of a book");
  if (along_out && block.outputs % block.dim != 0)
    fail("outputs " + shape(pull) + " are not whole sub-vectors");
  const int64_t points = block.points();
  expect(pull, "pull", float32, {groups, inputs, block.outputs});
  expect(base, "base", float32, {groups, inputs, block.outputs});
  expect(inner, "inner", float32, {groups, inputs, inputs});
  expect(inverse, "inverse", float32, {groups, steps, size, size});
  if (factor) expect(factor, "factor", float32, {groups, steps, size, size});
  expect(scored, "scored", float32, {-1, block.books, block.k, block.dim});
  // With factors of their own groups have scores of their own.
  const bool own_scores = scored.sizes[0] == groups * block.stages;
  if (!own_scores && scored.sizes[0] != block.stages) fail("scored has no centers of some stages");
  if (!before && block.stages > 1) fail("sweep_block: codes from before are missing");
  if (before)
    expect(before, "codes", functions().uint8, {groups, block.stages, steps, points});
  if (kept) expect(kept, "kept codes", functions().int32, {groups, steps, points});
  if (rows < 1 || first < 0 || of_group < 0 || per_step < 0 || padding < 0 || steps < 1 ||
      points < 1 || groups < 1 ||
      (steps - 1) * per_step + (first + (groups - 1) * of_group + points - 1) / rows >= block.books)
    fail("sweep_block: points without a book");
  for (int64_t i = 0; before && i < before.numel(); ++i)
    if (before.as<uint8_t>()[i] >= block.k) fail("a code is outside the centers");
  for (int64_t i = 0; kept && i < kept.numel(); ++i)
    if (kept.as<int32_t>()[i] >= block.k) fail("a code is outside the centers");
  Tensor codes = empty({groups, block.stages, steps, points}, functions().uint8);
  Tensor change = empty({groups, inputs, block.outputs}, float32);
  block.centers = centers.as<float>();
  for (int64_t g = 0; g < groups; ++g) {
    block.inner = inner.as<float>() + g * inputs * inputs;
    block.pull = pull.as<float>() + g * inputs * block.outputs;
    block.base = base.as<float>() + g * inputs * block.outputs;
    block.inverse = inverse.as<float>() + g * steps * size * size;
    block.factor = factor ? factor.as<float>() + g * steps * size * size : nullptr;
    block.scored = scored.as<float>() + (own_scores ? g * centers.numel() : 0);
    block.first = first + g * of_group;
    const int64_t place = g * block.stages * steps * points;
    block.before = before ? before.as<uint8_t>() + place : nullptr;
    block.kept = kept ? kept.as<int32_t>() + g * steps * points : nullptr;
    sweep_block(kernels(), block, codes.as<uint8_t>() + place,
                change.as<float>() + g * inputs * block.outputs);
  }
  give(stack, std::move(codes));
  give(stack + 1, std::move(change));
}

// values, importance, offset, shift
void scalar_cells(Value* stack, uint64_t, uint64_t) {
  constexpr int64_t most_cells = 1 << 24;
  const Tensor values = take(stack[0]), importance = take_optional(stack[1]),
               offset = take(stack[2]), shift = take(stack[3]);
  expect(values, "values", functions().float32, {-1});
  const int64_t n = values.sizes[0];
  if (importance) expect(importance, "importance", functions().float32, {n});
  expect(offset, "offset", functions().int32, {kCellBins});
  expect(shift, "shift", functions().uint8, {kCellBins});
  const CellMap map{offset.as<int32_t>(), shift.as<uint8_t>()};
  const int64_t cells = cell_count(map);
  if (cells < 0 || cells > most_cells) fail("scalar_cells: no map of cells");
  Tensor sums = empty({cells, 2}, functions().float64);
  std::fill_n(sums.as<double>(), sums.numel(), 0.0);
  add_to_cells(values.as<float>(), importance ? importance.as<float>() : nullptr, n, map,
               sums.as<double>());
  give(stack, std::move(sums));
}

// values, boundaries
void scalar_codes(Value* stack, uint64_t, uint64_t) {
  const Tensor values = take(stack[0]), boundaries = take(stack[1]);
  expect(values, "values", functions().float32, {-1});
  expect(boundaries, "boundaries", functions().float32, {-1});
  if (boundaries.sizes[0] >= kMostCenters) fail("scalar_codes: more than 255 boundaries");
  Tensor codes = empty({values.sizes[0]}, functions().uint8);
  count_below(kernels(), values.as<float>(), values.sizes[0], boundaries.as<float>(),
              boundaries.sizes[0], codes.as<uint8_t>());
  give(stack, std::move(codes));
}

// mass, moment, k
void optimal_intervals(Value* stack, uint64_t, uint64_t) {
  const Tensor mass = take(stack[0]), moment = take(stack[1]);
  const auto k = static_cast<int64_t>(stack[2]);
  expect(mass, "mass", functions().float64, {-1});
  const int64_t m = mass.sizes[0] - 1;
  expect(moment, "moment", functions().float64, {m + 1});
  if (k < 1 || k > m || m > INT32_MAX)
    fail("optimal_intervals: k is not 1 to the number of points");
  Tensor starts = empty({k}, functions().int64);
  optimal_starts(mass.as<double>(), moment.as<double>(), m, k, starts.as<int64_t>());
  give(stack, std::move(starts));
}

// values, k
void few_centers_of(Value* stack, uint64_t, uint64_t) {
  const Tensor values = take(stack[0]);
  const auto k = static_cast<int64_t>(stack[1]);
  expect(values, "values", functions().float32, {-1});
  if (k < 1 || values.sizes[0] < 1) fail("few_centers: no centers or no values");
  const std::vector<double> found = few_centers(values.as<float>(), values.sizes[0], k);
  Tensor centers = empty({static_cast<int64_t>(found.size())}, functions().float64);
  std::copy(found.begin(), found.end(), centers.as<double>());
  give(stack, std::move(centers));
}

// value, index, kernel, stride, before, dilation, places
void patch_rows(Value* stack, uint64_t, uint64_t) {
  const Tensor value = take(stack[0]), index = take(stack[1]);
  const Numbers lists[] = {Numbers(stack[2]), Numbers(stack[3]), Numbers(stack[4]),
                           Numbers(stack[5]), Numbers(stack[6])};
  const int64_t space = value.dims - 2;
  if (space < 1 || value.dtype != functions().float32)
    fail("patch_rows: the input " + shape(value) + " is not float32, (samples, channels, *places)");
  expect(index, "index", functions().int64, {-1});
  std::vector<PatchDimension> dimensions;
  int64_t positions = 1, places = value.sizes[0];
  for (const Numbers& list : lists)
    if (static_cast<int64_t>((*list).size()) != space)
      fail("patch_rows: settings are not one for each dimension");
  for (size_t at = 0; at < static_cast<size_t>(space); ++at) {
    const PatchDimension d = {value.sizes[2 + at], value.strides[2 + at], (*lists[0])[at],
                              (*lists[1])[at],     (*lists[2])[at],       (*lists[3])[at],
                              (*lists[4])[at]};
    if (d.kernel < 1 || d.places < 1) fail("patch_rows: a kernel of no positions or no places");
    dimensions.push_back(d);
    positions *= d.kernel;
    places *= d.places;
  }
  const int64_t* place = index.as<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i)
    if (place[i] < 0 || place[i] >= places)
      fail("patch_rows: no place " + std::to_string(place[i]) + " of " + std::to_string(places));
  const int64_t channels = value.sizes[1], count = index.numel();
  Tensor rows = empty({channels * positions, count}, functions().float32);
  if (rows.numel() == 0) return give(stack, std::move(rows));
  const std::vector<int64_t> reads = patch_reads(dimensions, value.strides[0], place, count);
  float* to = rows.as<float>();
  for (int64_t channel = 0; channel < channels; ++channel) {
    const float* from = value.as<float>() + channel * value.strides[1];
    for (const int64_t read : reads) *to++ = read < 0 ? 0.0f : from[read];
  }
  give(stack, std::move(rows));
}

}  // namespace

void register_fit_operators(torch_abi::LibraryHandle library) {
  const auto add = [&](const char* name, torch_abi::Kernel kernel) {
    torch_abi::check(functions().library_impl(library, name, kernel), "register an operator");
  };
  add("nearest_centers", nearest_centers);
  add("sums_by_code", sums_by_code);
  add("lloyd", lloyd_books);
  add("seed_centers", seed_centers);
  add("exchange_codes", exchange_codes);
  add("sweep_block", sweep_block_of);
  add("scalar_cells", scalar_cells);
  add("scalar_codes", scalar_codes);
  add("optimal_intervals", optimal_intervals);
  add("few_centers", few_centers_of);
  add("patch_rows", patch_rows);
}

}  // namespace vq
