#include "embedding.h"

#include "../table_operands.h"

namespace vq::ort {

CodebookEmbedding::CodebookEmbedding(const Functions& f, const Info* info)
    : functions(f), out_(number(f, info, "embedding_dim", -1)), group_(number(f, info, "group", 0)) {}

void CodebookEmbedding::compute(Context* context) {
  const auto get = [&](size_t index) { return input(functions, context, index); };
  const Tensor rows = get(0), codes = get(1), books = get(2), scale = get(3);
  if ((codes.type != kUint4 && codes.type != kUint8) || codes.dims != 3)
    fail("codebook_embedding: codes are UINT4 or UINT8 of 3 dimensions");
  const Table table = table_of(codes, codes.type == kUint4, codes.sizes[2], books, scale, out_, group_);
  const int64_t* wanted = rows.as<int64_t>();
  const int64_t count = rows.numel();
  check_rows(table, wanted, count);
  std::vector<int64_t> sizes(rows.sizes, rows.sizes + rows.dims);
  sizes.push_back(out_);
  chosen_kernels()->look_up(table, wanted, count, output(functions, context, sizes));
}

}  // namespace vq::ort
