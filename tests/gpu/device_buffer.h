// Device memory for the GPU tests.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace flashllm::test {

/// Ends the program with a message where a CUDA call failed.
inline void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

/// Device memory of exactly `bytes`, so that compute-sanitizer sees any access beyond.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) { Check(cudaMalloc(&pointer_, bytes == 0 ? 1 : bytes), "cudaMalloc"); }
  Buffer(const void* host, size_t bytes) : Buffer(bytes) {
    Check(cudaMemcpy(pointer_, host, bytes, cudaMemcpyHostToDevice), "upload");
  }
  ~Buffer() { cudaFree(pointer_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* get() const { return pointer_; }
  void Poison() { Check(cudaMemset(pointer_, 0xff, bytes_), "poison"); }
  std::vector<uint8_t> Read() const {
    std::vector<uint8_t> host(bytes_);
    Check(cudaMemcpy(host.data(), pointer_, bytes_, cudaMemcpyDeviceToHost), "download");
    return host;
  }

 private:
  void* pointer_ = nullptr;
  size_t bytes_;
};

}  // namespace flashllm::test
