// Reads of operands at any address: 8 halves of a row, zeros outside the matrix.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace flashllm::cuda {

/// A row-major matrix [rows, k].
struct Operand {
  const __half* base;
  int64_t stride;
  int rows, k;

  __device__ __forceinline__ bool Contains(int row, int column) const { return row < rows && column < k; }
  __device__ __forceinline__ const __half* At(int row, int column) const { return base + row * stride + column; }

  /// Element by element, for addresses that are no multiple of 16 bytes.
  __device__ __forceinline__ uint4 LoadUnaligned(int row, int column) const {
    uint32_t words[4] = {};
    if (row < rows) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + i < k)
          words[i / 2] |= static_cast<uint32_t>(__half_as_ushort(*At(row, column + i))) << (16 * (i & 1));
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

}  // namespace flashllm::cuda
