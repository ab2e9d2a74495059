#include "embedding.h"

#include <algorithm>

#include "../operands.h"

namespace vq::ort {
namespace {

// Codes from a place among all on, as bytes below k.
void unpack(const Tensor& codes, int64_t place, int64_t k, std::vector<uint8_t>* to) {
  const uint8_t* bytes = codes.as<uint8_t>();
  const auto last = static_cast<uint8_t>(k - 1);
  if (codes.type == kUint8) {
    for (size_t s = 0; s < to->size(); ++s) (*to)[s] = std::min(bytes[place + s], last);
    return;
  }
  size_t s = 0;
  if (place % 2 == 1 && s < to->size()) (*to)[s++] = bytes[place / 2] >> 4;
  bytes += (place + 1) / 2;
  for (; s + 1 < to->size(); s += 2, ++bytes) (*to)[s] = *bytes & 15, (*to)[s + 1] = *bytes >> 4;
  if (s < to->size()) (*to)[s] = *bytes & 15;
  for (uint8_t& code : *to) code = std::min(code, last);
}

// Adds the centers of a row's codes to it; of the last one only what the row has room for.
void add_centers(const std::vector<uint8_t>& codes, const float* table, int64_t apart, int64_t dim,
                 float* y, int64_t out) {
  if (dim == 1) {
    for (int64_t s = 0; s < out; ++s) y[s] += table[s * apart + codes[s]];
    return;
  }
  for (size_t s = 0; s < codes.size(); ++s, table += apart * dim, y += dim, out -= dim) {
    const float* center = table + codes[s] * dim;
    for (int64_t d = 0, length = std::min(dim, out); d < length; ++d) y[d] += center[d];
  }
}

}  // namespace

CodebookEmbedding::CodebookEmbedding(const Functions& f, const Info* info)
    : functions(f), out_(number(f, info, "embedding_dim", -1)), group_(number(f, info, "group", 0)) {}

void CodebookEmbedding::compute(Context* context) {
  const auto get = [&](size_t index) { return input(functions, context, index); };
  const Tensor rows = get(0), codes = get(1), books = get(2), scale = get(3);
  if ((codes.type != kUint4 && codes.type != kUint8) || codes.dims != 3 || books.dims != 5)
    fail("codebook_embedding: codes are UINT4 or UINT8 of 3 dimensions, codebooks of 5, got codes " +
         shape(codes) + " and codebooks " + shape(books));
  const int64_t stages = codes.sizes[0], count = codes.sizes[1], subspaces = codes.sizes[2];
  const int64_t groups = books.sizes[1], own = books.sizes[2], k = books.sizes[3],
                dim = books.sizes[4];
  const bool fits = books.sizes[0] == stages && (own == 1 || own == subspaces) && k > 0 && k <= (codes.type == kUint4 ? 16 : 256) &&
                    (groups == 1 || (group_ > 0 && groups == (count + group_ - 1) / group_)) &&
                    out_ <= subspaces * dim && out_ > (subspaces - 1) * dim &&
                    (!scale || scale.numel() == count);
  if (!fits)
    fail("codebook_embedding: codes " + shape(codes) + " and codebooks " + shape(books) +
         " make no table of rows of " + std::to_string(out_));
  std::vector<int64_t> sizes(rows.sizes, rows.sizes + rows.dims);
  sizes.push_back(out_);
  float* y = output(functions, context, sizes);
  const int64_t book = own * k * dim;
  std::vector<uint8_t> row_codes(static_cast<size_t>(subspaces));
  for (int64_t i = 0, n = rows.numel(); i < n; ++i, y += out_) {
    const int64_t row = rows.as<int64_t>()[i];
    if (row < 0 || row >= count)
      fail("codebook_embedding: there is no row " + std::to_string(row) + " of " +
           std::to_string(count));
    const int64_t group = groups == 1 ? 0 : row / group_;
    // -0, which adding keeps as it is: the first center comes through bit for bit.
    std::fill(y, y + out_, -0.0f);
    for (int64_t stage = 0; stage < stages; ++stage) {
      unpack(codes, (stage * count + row) * subspaces, k, &row_codes);
      const float* table = books.as<float>() + (stage * groups + group) * book;
      add_centers(row_codes, table, own == 1 ? 0 : k, dim, y, out_);
    }
    if (scale)
      for (int64_t d = 0; d < out_; ++d) y[d] *= scale.as<float>()[row];
  }
}

}  // namespace vq::ort
