// Random weights for the benchmark, made on the GPU: the canonical parts, the dense matrix, and a float64 reference.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <vector>

#include "ops/sparse-matmul/format.h"

namespace flashllm::bench {

/// Ends the program with a message where a CUDA call failed.
void Check(cudaError_t error, const char* what);

/// A weight with a uniform random mask, in device memory.
struct Workload {
  int64_t m = 0, k = 0, nnz = 0;
  uint8_t* bitmap = nullptr;
  int32_t* row_offsets = nullptr;
  __half* values = nullptr;
  __half* dense = nullptr;  // [m, k]
  std::vector<int32_t> host_row_offsets;

  Workload(int64_t m, int64_t k, double sparsity, uint64_t seed);
  ~Workload();
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  /// Shape, nnz and row offsets for MakePlan.
  PackedWeight view() const;
};

/// Random float16 in [-1, 1).
void FillRandom(__half* to, int64_t count, uint64_t seed);

/// Largest error of y[n, m] = x[n, k] · w[m, k]ᵀ in units of the bound 4.9e-4 |ref| + 4e-6 sum |w x| against a float64
/// product; NaN or unwritten counts as 1e30.
double WorstError(const __half* w, int64_t m, int64_t k, const __half* x, const __half* y, int64_t n);

/// The same over all columns up to 64, the first and the last 32 of more.
double WorstSampledError(const __half* w, int64_t m, int64_t k, const __half* x, const __half* y, int64_t n);

/// GB/s of a kernel that only reads 3 GiB, the best of a few launch shapes.
double ReadBandwidth();

}  // namespace flashllm::bench
