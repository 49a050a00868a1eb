// Launches one instance of the column kernel.
#pragma once

#include <algorithm>

#include "ops/sparse-matmul/cuda/column_kernel.cuh"
#include "ops/sparse-matmul/cuda/column_launch.h"

namespace flashllm::cuda {

template <int kNTiles, int kWarps, bool kBf16>
struct ColumnInstance {
  static constexpr int kColumns = 8 * kNTiles;

  static int FixedBytes(int cluster) {
    return BarrierBytes(kWarps) + PartialBytes(kWarps) + ReceiveBytes(cluster, kNTiles);
  }

  static cudaError_t Launch(const WeightPlan& plan, ColumnParams params, bool programmatic, cudaStream_t stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(plan.blocks * plan.cluster, (params.n + kColumns - 1) / kColumns);
    config.blockDim = dim3(kWarps * 32);
    config.dynamicSmemBytes = FixedBytes(plan.cluster) + kWarps * RingBytes(params.ring);
    config.stream = stream;
    cudaLaunchAttribute attributes[2];
    config.attrs = attributes;
    if (plan.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = plan.cluster;
      attributes[config.numAttrs].val.clusterDim.y = 1;
      attributes[config.numAttrs++].val.clusterDim.z = 1;
    }
    if (programmatic && plan.device.compute_capability >= 90) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    return cudaLaunchKernelEx(&config, ColumnMatMul<kNTiles, kWarps, kBf16>, params);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    return cudaFuncSetAttribute(ColumnMatMul<kNTiles, kWarps, kBf16>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                info.shared_bytes);
  }

  /// How many clusters of 2 and 4 blocks run at once.
  static cudaError_t CountClusters(DeviceInfo* info) {
    info->clusters[0] = info->sm_count;
    if (info->compute_capability < 90) return cudaSuccess;
    for (int i = 1; i <= 2; ++i) {
      cudaLaunchAttribute attribute;
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = 2 * i;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(2 * i * info->sm_count);
      config.blockDim = dim3(kWarps * 32);
      config.dynamicSmemBytes = info->shared_bytes;
      config.attrs = &attribute;
      config.numAttrs = 1;
      const cudaError_t error =
          cudaOccupancyMaxActiveClusters(&info->clusters[i], ColumnMatMul<kNTiles, kWarps, kBf16>, &config);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

/// The rings that fit: as deep as the kernels ask for, less on GPUs with little shared memory.
inline RingShape ChooseRing(const WeightPlan& plan) {
  constexpr int kFixedBytes = 40 << 10;  // barriers, partial sums, what a cluster receives: at most
  const int left = (plan.device.shared_bytes - kFixedBytes) / plan.warps;
  RingShape shape = {kMaxRingBlocks, kMaxMaskSlots, plan.ahead_rows};
  constexpr int kLeastBlocks = (kWindowRows + 2 * kBlockRows - 1) / kBlockRows;
  while (shape.blocks > kLeastBlocks && RingBytes(shape) > left) --shape.blocks;
  while (shape.mask_slots > 2 && RingBytes(shape) > left) --shape.mask_slots;
  return shape;
}

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
  params.ring = ChooseRing(plan);
  params.partition = MakePartition(plan);
  return params;
}

/// The instance for n columns: kernels for 8, 16 and 32 with 8 warps, one for any n with 4 where memory is short.
template <bool kBf16>
cudaError_t LaunchColumnsOf(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  const ColumnParams params = MakeParams(plan, layout, args);
  if (plan.warps == 4) return ColumnInstance<4, 4, kBf16>::Launch(plan, params, args.programmatic, stream);
  if (args.n <= 8) return ColumnInstance<1, 8, kBf16>::Launch(plan, params, args.programmatic, stream);
  if (args.n <= 16) return ColumnInstance<2, 8, kBf16>::Launch(plan, params, args.programmatic, stream);
  return ColumnInstance<4, 8, kBf16>::Launch(plan, params, args.programmatic, stream);
}

template <bool kBf16>
cudaError_t PrepareColumnsOf(DeviceInfo* info) {
  for (auto prepare : {ColumnInstance<1, 8, kBf16>::Prepare, ColumnInstance<2, 8, kBf16>::Prepare,
                       ColumnInstance<4, 8, kBf16>::Prepare, ColumnInstance<4, 4, kBf16>::Prepare}) {
    const cudaError_t error = prepare(*info);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
