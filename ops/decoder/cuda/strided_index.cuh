// Elements of several tensors that one multi-dimensional index walks: broadcasting and strided copies.
#pragma once

#include <utility>

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda::decoder {

template <int kOperands>
struct StridedIndex {
  int rank = 0;
  int64_t count = 1;
  int64_t dims[kMaxRank] = {};
  int64_t strides[kOperands][kMaxRank] = {};  // in elements; any sign

  /// Appends an axis inside of those so far. Axes of length 1 are left out; one that continues the axis before it, for
  /// every operand, becomes part of it.
  void Append(int64_t dim, const int64_t (&stride)[kOperands]) {
    count *= dim;
    if (dim == 1) return;
    bool continues = rank > 0;
    for (int k = 0; k < kOperands && continues; ++k) continues = strides[k][rank - 1] == stride[k] * dim;
    if (!continues) dims[rank++] = 1;
    dims[rank - 1] *= dim;
    for (int k = 0; k < kOperands; ++k) strides[k][rank - 1] = stride[k];
  }

  /// Offsets of the operands' elements at flat index `item`. Unsigned: uint32_t (faster) where count fits, or uint64_t.
  template <typename Unsigned>
  __device__ __forceinline__ void Locate(int64_t item, int64_t (&offsets)[kOperands]) const {
#pragma unroll
    for (int k = 0; k < kOperands; ++k) offsets[k] = 0;
    Unsigned left = static_cast<Unsigned>(item);
#pragma unroll 1
    for (int axis = rank - 1; axis >= 0; --axis) {
      const Unsigned dim = static_cast<Unsigned>(dims[axis]), above = axis == 0 ? 0 : left / dim;
      const int64_t at = static_cast<int64_t>(left - above * dim);
#pragma unroll
      for (int k = 0; k < kOperands; ++k) offsets[k] += at * strides[k][axis];
      left = above;
    }
  }
};

/// Strides of a contiguous tensor of `shape` seen as `result`, which it broadcasts to.
inline void BroadcastStrides(const Shape& shape, const Shape& result, int64_t (&strides)[kMaxRank]) {
  int64_t stride = 1;
  for (int axis = result.rank - 1, own = shape.rank - 1; axis >= 0; --axis, --own) {
    const int64_t dim = own >= 0 ? shape.dims[own] : 1;
    strides[axis] = dim == 1 ? 0 : stride;
    stride *= dim;
  }
}

}  // namespace flashllm::cuda::decoder
