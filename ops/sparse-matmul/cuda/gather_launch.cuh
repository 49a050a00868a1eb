// Chooses a kernel instance for n columns and launches it.
#pragma once

#include <algorithm>

#include "ops/sparse-matmul/cuda/gather_kernel.cuh"
#include "ops/sparse-matmul/cuda/gather_launch.h"

namespace flashllm::cuda {

template <int kNTiles, int kWarps, int kHalves, bool kBf16>
struct GatherInstance {
  static constexpr int kColumns = 8 * kNTiles;

  static int FixedBytes(int cluster) {
    return BarrierBytes(kWarps) + PartialBytes(kWarps) + ReceiveBytes(cluster, kHalves, kNTiles);
  }

  static int SlotBytes(const WeightPlan& plan) {
    return std::max<int>(16, kHalves == 2 ? plan.max_unit_bytes : plan.max_chunk_bytes);
  }

  /// Stages of the ring, 0 where not one fits. Deeper rings are slower: reads of X queue behind every weight byte in
  /// flight, so there should be no more of those than keep the memory busy.
  static int Stages(const WeightPlan& plan) {
    constexpr int kEnoughBytes = 48 << 10;
    const int left = plan.device.shared_bytes - FixedBytes(plan.cluster), stage_bytes = kWarps * SlotBytes(plan);
    const int enough = std::max(2, (kEnoughBytes + stage_bytes - 1) / stage_bytes);
    return left < 0 ? 0 : std::min({kMaxStages, enough, left / stage_bytes});
  }

  static cudaError_t Launch(const WeightPlan& plan, GatherParams params, bool programmatic, cudaStream_t stream) {
    params.slot_bytes = SlotBytes(plan);
    params.stages = Stages(plan);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(plan.blocks * plan.cluster, (params.n + kColumns - 1) / kColumns);
    config.blockDim = dim3(kWarps * 32);
    config.dynamicSmemBytes = FixedBytes(plan.cluster) + kWarps * params.stages * params.slot_bytes;
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
    return cudaLaunchKernelEx(&config, GatherMatMul<kNTiles, kWarps, kHalves, kBf16>, params);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    return cudaFuncSetAttribute(GatherMatMul<kNTiles, kWarps, kHalves, kBf16>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
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
          cudaOccupancyMaxActiveClusters(&info->clusters[i], GatherMatMul<kNTiles, kWarps, kHalves, kBf16>, &config);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

inline GatherParams MakeParams(const WeightPlan& plan, const void* layout, const MatMulArgs& args) {
  GatherParams params = {};
  params.table = static_cast<const uint32_t*>(layout);
  params.chunks = static_cast<const uint8_t*>(layout) + plan.table_bytes;
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

}  // namespace flashllm::cuda
