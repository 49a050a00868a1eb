// Launches one instance of the column kernel.
#pragma once

#include <algorithm>

#include "ops/sparse-matmul/cuda/column_kernel.cuh"
#include "ops/sparse-matmul/cuda/column_launch.h"

namespace flashllm::cuda {

/// A stage's window begins and ends within blocks.
constexpr int kLeastRingBlocks = (kWindowRows + 2 * kBlockRows - 2) / kBlockRows;

template <int kNTiles, int kPairs, bool kBf16>
struct ColumnInstance {
  static constexpr int kColumns = 8 * kNTiles;

  static int FixedBytes(int cluster) {
    return BarrierBytes(kPairs) + PartialBytes(kPairs, kNTiles) + ReceiveBytes(cluster, kNTiles);
  }

  /// As deep as the kernel asks for, less on GPUs with little shared memory.
  static RingShape Ring(const WeightPlan& plan) {
    const int left = (plan.device.shared_bytes - FixedBytes(plan.cluster)) / kPairs;
    RingShape shape = {kMaxRingBlocks, kMaxMaskSlots, plan.ahead_rows};
    while (shape.mask_slots > 2 && RingBytes(shape) > left) --shape.mask_slots;
    while (shape.blocks > kLeastRingBlocks && RingBytes(shape) > left) --shape.blocks;
    return shape;
  }

  static cudaError_t Launch(const WeightPlan& plan, ColumnParams params, bool programmatic, cudaStream_t stream) {
    params.ring = Ring(plan);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(plan.blocks * plan.cluster, (params.n + kColumns - 1) / kColumns);
    config.blockDim = dim3(kPairs * 64);
    config.dynamicSmemBytes = FixedBytes(plan.cluster) + kPairs * RingBytes(params.ring);
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
    return cudaLaunchKernelEx(&config, ColumnMatMul<kNTiles, kPairs, kBf16>, params);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    return cudaFuncSetAttribute(ColumnMatMul<kNTiles, kPairs, kBf16>, cudaFuncAttributeMaxDynamicSharedMemorySize,
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
      config.blockDim = dim3(kPairs * 64);
      config.dynamicSmemBytes = info->shared_bytes;
      config.attrs = &attribute;
      config.numAttrs = 1;
      const cudaError_t error =
          cudaOccupancyMaxActiveClusters(&info->clusters[i], ColumnMatMul<kNTiles, kPairs, kBf16>, &config);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
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
  params.partition = MakePartition(plan);
  return params;
}

/// The instance for n columns: kernels for 8, 16 and 32, one for any n where shared memory is short.
template <bool kBf16>
cudaError_t LaunchColumnsOf(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  const ColumnParams params = MakeParams(plan, layout, args);
  if (plan.pairs == 4) return ColumnInstance<4, 4, kBf16>::Launch(plan, params, args.programmatic, stream);
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
