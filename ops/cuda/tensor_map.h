// Tensor maps: what a GPU from 9.0 on must know to copy boxes of a matrix (TMA).
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace flashllm::cuda {

/// k of a box: 128 bytes, what the swizzle repeats.
constexpr int kBoxK = 64;

/// The driver's cuTensorMapEncodeTiled, or null where it has none.
cudaError_t FindTensorMapEncoder(void** encode);

/// A row-major float16 matrix [rows, k], `stride` elements from row to row, in boxes of `box_rows` rows and kBoxK k
/// with 128-byte swizzle; what lies outside of it is copied as zeros. `base` and the stride are multiples of 16 bytes.
cudaError_t EncodeTensorMap(void* encode, const void* base, int64_t rows, int64_t k, int64_t stride, int box_rows,
                            CUtensorMap* map);

}  // namespace flashllm::cuda
