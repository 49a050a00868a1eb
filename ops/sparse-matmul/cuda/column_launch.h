// The kernels on column layouts: one translation unit a team, value type and kind of columns, so that they compile side
// by side.
#pragma once

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// `count` columns of the multiplication from column `first` on.
inline MatMulArgs SliceColumns(const WeightPlan& plan, const MatMulArgs& args, int64_t first, int64_t count) {
  const int64_t element = args.type == ElementType::kFloat32 ? 4 : 2, y_bytes = first * plan.out_features * element;
  MatMulArgs slice = args;
  slice.n = count;
  slice.x = static_cast<const char*>(args.x) + first * plan.in_features * element;
  slice.y = static_cast<char*>(args.y) + y_bytes;
  if (args.residual != nullptr) slice.residual = static_cast<const char*>(args.residual) + y_bytes;
  return slice;
}

using LaunchColumns = cudaError_t(const WeightPlan& plan, const void* layout, const MatMulArgs& args,
                                  cudaStream_t stream);
LaunchColumns LaunchHalvesF16, LaunchWordsF16, LaunchHalvesBf16, LaunchWordsBf16;
LaunchColumns LaunchGroupHalves, LaunchGroupWords, LaunchGroupQuads;
/// Of a plan that TakesManyColumns (layout.h), X aligned to 16 bytes.
LaunchColumns LaunchManyHalves, LaunchManyWords;

/// Raises the kernels' limits of shared memory on the current device; the first also fills info->clusters, those
/// of groups take back info->encode_tensor_map where there are none.
using PrepareColumns = cudaError_t(DeviceInfo* info);
PrepareColumns PrepareHalvesF16, PrepareWordsF16, PrepareHalvesBf16, PrepareWordsBf16;
PrepareColumns PrepareGroupHalves, PrepareGroupWords, PrepareGroupQuads, PrepareManyHalves, PrepareManyWords;

}  // namespace flashllm::cuda
