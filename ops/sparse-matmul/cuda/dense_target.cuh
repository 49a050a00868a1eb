// Where the expansion of a packed weight goes.
#pragma once

#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {

/// Rows first_row … end_row - 1 of a dense weight.
struct DenseTarget {
  uint16_t* to;
  int first_row, end_row;
  int k;
  int64_t row_stride, panel_stride;  // elements from row to row, and from 64 k to the next
  bool aligned;                      // rows can be written 16 bytes at a time
};

inline DenseTarget MakeDenseTarget(const WeightPlan& plan, int first_block, int end_block, void* dense,
                                   WeightOrder order) {
  DenseTarget target = {};
  target.to = static_cast<uint16_t*>(dense);
  target.first_row = static_cast<int>(RowOfBlock(plan, first_block));
  target.end_row = static_cast<int>(RowOfBlock(plan, end_block));
  target.k = static_cast<int>(plan.in_features);
  const int64_t rows = target.end_row - target.first_row;
  target.row_stride = order == WeightOrder::kPanels ? kPanelK : plan.in_features;
  target.panel_stride = order == WeightOrder::kPanels ? rows * kPanelK : kPanelK;
  target.aligned = plan.in_features % 8 == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0;
  return target;
}

/// The first `count` of eight halves, or all where there are more; `vector`: `to` is aligned to 16 bytes, and `count`
/// at least 8.
__device__ __forceinline__ void StoreEight(uint16_t* to, uint4 words, int count, bool vector) {
  if (vector) {
    *reinterpret_cast<uint4*>(to) = words;
    return;
  }
  const uint32_t halves[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = static_cast<uint16_t>(halves[i / 2] >> (16 * (i & 1)));
  }
}

/// 8 consecutive k of one row, from a multiple of 8 on; what lies outside of the target is left out.
__device__ __forceinline__ void StoreRow(const DenseTarget& dense, int row, int k, uint4 words) {
  if (row >= dense.end_row || k >= dense.k) return;
  uint16_t* const to =
      dense.to + (row - dense.first_row) * dense.row_stride + k / kPanelK * dense.panel_stride + k % kPanelK;
  StoreEight(to, words, dense.k - k, dense.aligned);
}

}  // namespace flashllm::cuda
