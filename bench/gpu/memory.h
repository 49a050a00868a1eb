// Device memory for the lifetime of a scope.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "bench/gpu/workload.h"

namespace flashllm::bench {

class Memory {
 public:
  /// Ends the program where there is not so much.
  explicit Memory(int64_t bytes) { Check(cudaMalloc(&pointer_, std::max<int64_t>(bytes, 1)), "device memory"); }
  ~Memory() { cudaFree(pointer_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* get() const { return pointer_; }
  __half* half() const { return static_cast<__half*>(pointer_); }

 private:
  void* pointer_ = nullptr;
};

}  // namespace flashllm::bench
