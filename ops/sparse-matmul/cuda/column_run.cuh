// What the kernels on column layouts share: their parameters, a run on its way through its warp, and how an output is
// stored.
#pragma once

#include <type_traits>

#include "ops/sparse-matmul/cuda/column_decode.cuh"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/stream.cuh"

namespace flashllm::cuda {

struct ColumnParams {
  const uint8_t* layout;
  const __half* x;
  __half* y;
  const __half* bias;
  const __half* residual;
  int m, k, n;
  bool relu;
  bool x_aligned;  // rows of X can be read 16 bytes at a time
  bool y_aligned;  // two neighbours of Y, the first of an even row, can be stored at once
  Partition partition;
};

inline ColumnParams MakeParams(const WeightPlan& plan, const void* layout, const MatMulArgs& args) {
  ColumnParams params = {};
  params.layout = static_cast<const uint8_t*>(layout);
  params.x = static_cast<const __half*>(args.x);
  params.y = static_cast<__half*>(args.y);
  params.bias = static_cast<const __half*>(args.bias);
  params.residual = static_cast<const __half*>(args.residual);
  params.m = static_cast<int>(plan.out_features);
  params.k = static_cast<int>(plan.in_features);
  params.n = static_cast<int>(args.n);
  params.relu = args.activation == Activation::kRelu;
  params.x_aligned = plan.in_features % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  params.y_aligned = plan.out_features % 2 == 0 && reinterpret_cast<uintptr_t>(args.y) % 4 == 0;
  params.partition = MakePartition(plan);
  return params;
}

/// An output: bias, activation, residual; float16.
__device__ __forceinline__ __half Output(const ColumnParams& p, int row, int64_t at, float sum) {
  if (p.bias != nullptr) sum += __half2float(p.bias[row]);
  if (p.relu) sum = sum < 0.0f ? 0.0f : sum;  // NaN stays NaN
  if (p.residual != nullptr) sum += __half2float(p.residual[at]);
  return __float2half_rn(sum);
}

__device__ __forceinline__ void Store(const ColumnParams& p, int row, int column, float sum) {
  if (row >= p.m || column >= p.n) return;
  const int64_t at = static_cast<int64_t>(column) * p.m + row;
  p.y[at] = Output(p, row, at, sum);
}

/// Two outputs of one column, of rows `row`, which is even, and `row` + 1.
__device__ __forceinline__ void StoreRows(const ColumnParams& p, int row, int column, const float (&sums)[2]) {
  if (!p.y_aligned) {
    Store(p, row, column, sums[0]);
    Store(p, row + 1, column, sums[1]);
    return;
  }
  if (row >= p.m || column >= p.n) return;
  const int64_t at = static_cast<int64_t>(column) * p.m + row;
  *reinterpret_cast<__half2*>(p.y + at) =
      __halves2half2(Output(p, row, at, sums[0]), Output(p, row + 1, at + 1, sums[1]));
}

/// A run on its way through its warp.
template <Columns kColumns>
struct RunState {
  Stream stream;
  Cursor<kColumns> cursor;
  int first_unit, end_unit;

  /// Run `index` of the layout, over these units. It begins with stream.Start().
  __device__ __forceinline__ RunState(const ColumnParams& p, int index, int first_unit, int end_unit, uint32_t ring,
                                      uint32_t barriers)
      : stream(p.layout,
               reinterpret_cast<const uint32_t*>(p.layout) + static_cast<int64_t>(index) * p.partition.record_words,
               p.partition.record_words, ring, barriers),
        cursor(ring, threadIdx.x & 31),
        first_unit(first_unit),
        end_unit(end_unit) {}

  /// Waits for the next stage of a panel of depth kDepth and reads the lane's mask words. `all`: else, which takes a
  /// kRagged, the run has a tile less.
  template <int kDepth, bool kRagged, int kWords>
  __device__ __forceinline__ void Enter(bool all, uint32_t (&masks)[kWords]) {
    const uint32_t block = stream.Enter();
    const uint2 header = ptx::LoadShared64(block);
    const uint32_t column = ptx::LoadShared8(block + 16 + (threadIdx.x & 31));
    if constexpr (kRagged && PacksMasks(kColumns, kDepth)) {
      if (all) {
        LoadMasks<kWords>(block, masks);
      } else {
        LoadMasks<kWords - 1>(block, masks);
        UnpackMasks<kDepth>(masks);
      }
    } else {
      LoadMasks<kWords>(block, masks);
    }
    cursor.Enter(stream.ring(), header.x, header.y, column);
  }

 private:
  /// The first kCount words of a stage that has so many.
  template <int kCount, int kWords>
  static __device__ __forceinline__ void LoadMasks(uint32_t block, uint32_t (&masks)[kWords]) {
    const int lane = threadIdx.x & 31;
    if constexpr (kCount == 4) {
      const uint4 words = ptx::LoadShared128(block + MaskWordAt(4, 0, 0) + 16 * lane);
      masks[0] = words.x, masks[1] = words.y, masks[2] = words.z, masks[3] = words.w;
    } else if constexpr (kCount > 0) {
      if constexpr (kCount > 1) {
        const uint2 words = ptx::LoadShared64(block + MaskWordAt(kCount, 0, 0) + 8 * lane);
        masks[0] = words.x, masks[1] = words.y;
      }
      if constexpr (kCount != 2)
        masks[kCount - 1] = ptx::LoadShared32(block + MaskWordAt(kCount, kCount - 1, 0) + 4 * lane);
    }
  }
};

/// Calls body(std::integral_constant) for 0 to kCount - 1.
template <int kCount, int kIndex = 0, typename Body>
__device__ __forceinline__ void ForEach(const Body& body) {
  if constexpr (kIndex < kCount) {
    body(std::integral_constant<int, kIndex>());
    ForEach<kCount, kIndex + 1>(body);
  }
}

/// Calls body(std::integral_constant) for a number from 1 to kMost, straight code for each.
template <int kMost, typename Body>
__device__ __forceinline__ void ForNumber(int number, const Body& body) {
  if constexpr (kMost > 1) {
    if (number < kMost) return ForNumber<kMost - 1>(number, body);
  }
  body(std::integral_constant<int, kMost>());
}

}  // namespace flashllm::cuda
