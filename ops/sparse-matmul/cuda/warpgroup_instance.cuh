// How the kernels for teams of four warps are launched.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "ops/cuda/launch.h"
#include "ops/cuda/tensor_map.h"
#include "ops/sparse-matmul/cuda/column_launch.h"
#include "ops/sparse-matmul/cuda/warpgroup_x.cuh"

namespace flashllm::cuda {

/// The parameters of a kernel that has `width` columns of X at a time. `by_tma`: it brings them so.
inline cudaError_t MakeGroupParams(const WeightPlan& plan, const void* layout, const MatMulArgs& args, int width,
                                   bool by_tma, GroupParams* params) {
  *params = {};
  params->columns = MakeParams(plan, layout, args);
  if (!params->columns.x_aligned) return cudaSuccess;
  const int rows = static_cast<int>(std::min<int64_t>(width, (args.n + 7) / 8 * 8));
  params->x_box_bytes = rows * kChunkK * 2;
  if (!by_tma) return cudaSuccess;
  return EncodeTensorMap(plan.device.encode_tensor_map, args.x, args.n, plan.in_features, plan.in_features, rows,
                         &params->x_map);
}

/// Readies kernels of sm_90a, each by its instance's Prepare; without one of them there are no such teams.
inline cudaError_t PrepareGroups(DeviceInfo* info, std::initializer_list<cudaError_t (*)(bool*)> kernels) {
  bool exists = info->compute_capability >= 90;
  for (const auto prepare : kernels) {
    if (!exists) break;
    const cudaError_t error = prepare(&exists);
    if (error != cudaSuccess) return error;
  }
  if (!exists) info->encode_tensor_map = nullptr;
  return cudaSuccess;
}

/// kKernel: a kernel on the layouts of these teams, its thread block as Shape says.
template <typename Shape, auto* kKernel>
struct GroupInstance {
  static constexpr int kWidth = Shape::kWidth;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    GroupParams params;
    const cudaError_t error = MakeGroupParams(plan, layout, args, kWidth, !Shape::kXByLoads, &params);
    if (error != cudaSuccess) return error;
    const dim3 grid(plan.blocks / plan.row_groups * plan.cluster, Blocks(args.n));
    return LaunchWith(params, grid, plan, args, stream);
  }

  /// Blocks of columns.
  static unsigned Blocks(int64_t n) { return static_cast<unsigned>((n + kWidth - 1) / kWidth); }

  template <typename Params>
  static cudaError_t LaunchWith(const Params& params, dim3 grid, const WeightPlan& plan, const MatMulArgs& args,
                                cudaStream_t stream) {
    LaunchShape shape;
    shape.grid = grid;
    shape.threads = Shape::kThreads;
    shape.shared_bytes = Shape::kSharedBytes;
    shape.cluster = plan.cluster;
    shape.programmatic = args.programmatic;
    return LaunchKernel(kKernel, shape, params, stream);
  }

  /// False in `exists` where this library has no code of the kernel for the current device.
  static cudaError_t Prepare(bool* exists) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kKernel);
    if (error != cudaSuccess) return error;
    *exists = attributes.binaryVersion == 90;
    if (!*exists) return cudaSuccess;
    return cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  }
};

}  // namespace flashllm::cuda
