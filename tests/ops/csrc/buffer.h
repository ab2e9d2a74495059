// Heap memory that ends with its last element, so that AddressSanitizer sees whoever reads beyond.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

// `skipped` elements lie before the first: no more alignment than the element's own.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t size, int64_t skipped, T value)
      : memory_(new T[static_cast<size_t>(skipped + size)]),
        data_(memory_.get() + skipped),
        size_(size) {
    for (int64_t i = 0; i < size; ++i) data_[i] = value;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  std::unique_ptr<T[]> memory_;
  T* data_ = nullptr;
  int64_t size_ = 0;
};
