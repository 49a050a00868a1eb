// Launches the kernel for teams of one warp.
#pragma once

#include <algorithm>

#include "ops/cuda/launch.h"
#include "ops/sparse-matmul/cuda/column_launch.h"
#include "ops/sparse-matmul/cuda/warp_kernel.cuh"

namespace flashllm::cuda {

template <Columns kColumns, int kNTiles, int kWarps, int kRuns, bool kBf16>
struct WarpInstance {
  static constexpr int kWidth = 8 * kNTiles;

  using Shape = cuda::Shape<kNTiles, kWarps, kRuns>;

  static cudaError_t Launch(const WeightPlan& plan, const ColumnParams& params, bool programmatic,
                            cudaStream_t stream) {
    LaunchShape shape;
    shape.grid = dim3(plan.blocks * plan.cluster, (params.n + kWidth - 1) / kWidth);
    shape.threads = kWarps * 32;
    shape.shared_bytes = Shape::SharedBytes(plan.cluster);
    shape.cluster = plan.cluster;
    shape.programmatic = programmatic && plan.device.compute_capability >= 90;
    return LaunchKernel(WarpMatMul<kColumns, kNTiles, kWarps, kRuns, kBf16>, shape, params, stream);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    return cudaFuncSetAttribute(WarpMatMul<kColumns, kNTiles, kWarps, kRuns, kBf16>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
  }

  /// How many clusters of 2 and 4 blocks run at once.
  static cudaError_t CountClusters(DeviceInfo* info) {
    info->clusters[0] = info->sm_count;
    if (info->compute_capability < 90) return cudaSuccess;
    for (int i = 1; i <= 2; ++i) {
      LaunchShape shape;
      shape.grid = dim3(2 * i * info->sm_count);
      shape.threads = kWarps * 32;
      shape.shared_bytes = info->shared_bytes;
      shape.cluster = 2 * i;
      const cudaError_t error =
          cuda::CountClusters(WarpMatMul<kColumns, kNTiles, kWarps, kRuns, kBf16>, shape, &info->clusters[i]);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

/// Instances for 8, 16 and 32 columns, one for any n where shared memory is short.
template <Columns kColumns, bool kBf16>
struct WarpInstances {
  using N8 = WarpInstance<kColumns, 1, 16, 1, kBf16>;
  using N16 = WarpInstance<kColumns, 2, 16, 1, kBf16>;
  using N32 = WarpInstance<kColumns, 4, 8, 2, kBf16>;
  using EightLanes = WarpInstance<kColumns, 4, 8, 1, kBf16>;
  using FourLanes = WarpInstance<kColumns, 4, 4, 1, kBf16>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    const ColumnParams params = MakeParams(plan, layout, args);
    const auto launch = plan.lanes == 4   ? FourLanes::Launch
                        : plan.lanes == 8 ? EightLanes::Launch
                        : args.n <= 8     ? N8::Launch
                        : args.n <= 16    ? N16::Launch
                                          : N32::Launch;
    return launch(plan, params, args.programmatic, stream);
  }

  static cudaError_t Prepare(DeviceInfo* info) {
    for (auto prepare : {N8::Prepare, N16::Prepare, N32::Prepare, EightLanes::Prepare, FourLanes::Prepare}) {
      const cudaError_t error = prepare(*info);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

}  // namespace flashllm::cuda
