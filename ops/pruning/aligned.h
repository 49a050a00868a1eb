// Memory that begins at a multiple of a cache line. Eigen's loops begin with single elements until they reach an
// aligned one, so that the last bits of a sum would otherwise depend on where the allocator put a matrix, and results
// would not repeat.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace flashllm::pruning {

constexpr size_t kAlignment = 64;

template <typename T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <typename U>
  AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(kAlignment))); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t(kAlignment)); }

  template <typename U>
  bool operator==(const AlignedAllocator<U>&) const {
    return true;
  }
  template <typename U>
  bool operator!=(const AlignedAllocator<U>&) const {
    return false;
  }
};

using Floats = std::vector<float, AlignedAllocator<float>>;
using Doubles = std::vector<double, AlignedAllocator<double>>;

}  // namespace flashllm::pruning
