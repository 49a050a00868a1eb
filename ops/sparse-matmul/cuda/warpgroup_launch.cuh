// Launches the kernel for teams of four warps.
#pragma once

#include <algorithm>

#include "ops/cuda/launch.h"
#include "ops/cuda/tensor_map.h"
#include "ops/sparse-matmul/cuda/column_launch.h"
#include "ops/sparse-matmul/cuda/warpgroup_kernel.cuh"

namespace flashllm::cuda {

template <Columns kColumns, int kNTiles, int kGroups>
struct GroupInstance {
  static constexpr int kWidth = 8 * kNTiles;

  using Shape = GroupShape<kNTiles, kGroups>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    GroupParams params = {};
    params.columns = MakeParams(plan, layout, args);
    if (params.columns.x_aligned) {
      const int rows = static_cast<int>(std::min<int64_t>(kWidth, (args.n + 7) / 8 * 8));
      params.x_box_bytes = rows * kChunkK * 2;
      if constexpr (!Shape::kXByLoads) {
        const cudaError_t error = EncodeTensorMap(plan.device.encode_tensor_map, args.x, args.n, plan.in_features,
                                                  plan.in_features, rows, &params.x_map);
        if (error != cudaSuccess) return error;
      }
    }
    LaunchShape shape;
    shape.grid = dim3(plan.blocks * plan.cluster, static_cast<unsigned>((args.n + kWidth - 1) / kWidth));
    shape.threads = Shape::kThreads;
    shape.shared_bytes = Shape::kSharedBytes;
    shape.cluster = plan.cluster;
    shape.programmatic = args.programmatic;
    return LaunchKernel(GroupMatMul<kColumns, kNTiles, kGroups>, shape, params, stream);
  }

  /// False in `exists` where this library has no code of the kernel for the current device.
  static cudaError_t Prepare(bool* exists) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, GroupMatMul<kColumns, kNTiles, kGroups>);
    if (error != cudaSuccess) return error;
    *exists = attributes.binaryVersion == 90;
    if (!*exists) return cudaSuccess;
    return cudaFuncSetAttribute(GroupMatMul<kColumns, kNTiles, kGroups>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                Shape::kSharedBytes);
  }
};

/// Instances for 8, 16, 32 and 64 columns.
template <Columns kColumns>
struct GroupInstances {
  using N8 = GroupInstance<kColumns, 1, 4>;
  using N16 = GroupInstance<kColumns, 2, 4>;
  using N32 = GroupInstance<kColumns, 4, 4>;
  using N64 = GroupInstance<kColumns, 8, 2>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    const auto launch = args.n <= 8    ? N8::Launch
                        : args.n <= 16 ? N16::Launch
                        : args.n <= 32 ? N32::Launch
                                       : N64::Launch;
    return launch(plan, layout, args, stream);
  }

  static cudaError_t Prepare(DeviceInfo* info) {
    bool exists = info->compute_capability >= 90;
    for (auto prepare : {N8::Prepare, N16::Prepare, N32::Prepare, N64::Prepare}) {
      if (!exists) break;
      const cudaError_t error = prepare(&exists);
      if (error != cudaSuccess) return error;
    }
    if (!exists) info->encode_tensor_map = nullptr;
    return cudaSuccess;
  }
};

}  // namespace flashllm::cuda
