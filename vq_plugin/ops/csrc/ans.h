// Symbols by their frequencies: the entropy coder of files, as docs/format.md specifies it.
#pragma once

#include <cstdint>

namespace vq {

// A state, and below it a stack of words that did not fit into it. An empty stream is all 0.
struct AnsStream {
  uint64_t state;
  int64_t size;  // words on the stack
};

// How often every symbol comes: 1 or more of the 2^24 parts that they sum to.
struct AnsTable {
  const uint32_t* frequencies;
  int64_t k;

  bool valid() const;
};

// Puts symbols on top, the last one first: they come back in their order. There has to be room for
// a word more than symbols. False, with the stream unchanged, where a symbol is not below k.
template <typename Symbol>
bool ans_push(const AnsTable&, const Symbol* symbols, int64_t count, uint32_t* words, AnsStream&);

// Takes symbols off again. Any words and any state give symbols; none are left once it is empty.
template <typename Symbol>
void ans_pop(const AnsTable&, const uint32_t* words, AnsStream&, Symbol* symbols, int64_t count);

}  // namespace vq
