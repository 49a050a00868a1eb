// With programmatic dependent launch a kernel begins before the one ahead of it has ended. Whether it waits for that
// one's outputs shows only where these come late.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace flashllm::test {

/// Tensors and what they held.
struct LateCopies {
  static constexpr int kMost = 8;
  uint8_t *from[kMost], *to[kMost];
  size_t bytes[kMost];
};

/// Lets the next kernel begin at once, and puts the tensors back some 20 us later.
static __global__ void __launch_bounds__(1024) PutBack(const __grid_constant__ LateCopies copies, int count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  constexpr int64_t kCycles = 40000;
  const int64_t begin = clock64();
  while (clock64() - begin < kCycles) {
  }
  for (int i = 0; i < count; ++i) {
    for (size_t at = threadIdx.x; at < copies.bytes[i]; at += blockDim.x) copies.to[i][at] = copies.from[i][at];
  }
}

/// Tensors that a kernel ahead of the launch under test writes last of all, long after that one may have begun.
class LateInputs {
 public:
  LateInputs() = default;
  ~LateInputs() {
    for (int i = 0; i < count_; ++i) cudaFree(copies_.from[i]);
  }
  LateInputs(const LateInputs&) = delete;
  LateInputs& operator=(const LateInputs&) = delete;

  /// Keeps what `memory` holds now. Null is left out.
  void Add(const void* memory, size_t bytes) {
    if (memory == nullptr || bytes == 0) return;
    if (count_ == LateCopies::kMost) Fail("more tensors than it takes");
    copies_.to[count_] = static_cast<uint8_t*>(const_cast<void*>(memory));
    copies_.bytes[count_] = bytes;
    Check(cudaMalloc(reinterpret_cast<void**>(&copies_.from[count_]), bytes));
    Check(cudaMemcpy(copies_.from[count_], memory, bytes, cudaMemcpyDeviceToDevice));
    ++count_;
  }

  /// Poisons the tensors and starts PutBack.
  void Send(cudaStream_t stream = nullptr) const {
    if (count_ == 0) return;
    for (int i = 0; i < count_; ++i) Check(cudaMemsetAsync(copies_.to[i], 0xff, copies_.bytes[i], stream));
    PutBack<<<1, 1024, 0, stream>>>(copies_, count_);
    Check(cudaGetLastError());
  }

 private:
  static void Fail(const char* why) {
    std::fprintf(stderr, "late inputs: %s\n", why);
    std::exit(1);
  }
  static void Check(cudaError_t error) {
    if (error != cudaSuccess) Fail(cudaGetErrorString(error));
  }

  LateCopies copies_ = {};
  int count_ = 0;
};

}  // namespace flashllm::test
