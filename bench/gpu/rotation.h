// Copies of one block of device memory, so that consecutive launches find theirs in no cache.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "bench/gpu/workload.h"

namespace flashllm::bench {

constexpr int64_t kRotatedBytes = int64_t{640} << 20;  // well above any L2

/// The copies; launch i takes number i modulo their count.
class Rotation {
 public:
  Rotation(const void* original, int64_t bytes)
      : stride_((bytes + 255) / 256 * 256),
        count_(static_cast<int>(std::max<int64_t>(2, kRotatedBytes / stride_ + 1))) {
    Check(cudaMalloc(&memory_, stride_ * count_), "rotated weights");
    for (int i = 0; i < count_; ++i)
      Check(cudaMemcpy(static_cast<char*>(memory_) + i * stride_, original, bytes, cudaMemcpyDeviceToDevice),
            "rotated weights");
  }
  ~Rotation() { cudaFree(memory_); }
  Rotation(const Rotation&) = delete;
  Rotation& operator=(const Rotation&) = delete;
  const void* at(int i) const { return static_cast<const char*>(memory_) + (i % count_) * stride_; }
  int launches() const { return std::max(2 * count_, 16); }

 private:
  void* memory_ = nullptr;
  int64_t stride_;
  int count_;
};

}  // namespace flashllm::bench
