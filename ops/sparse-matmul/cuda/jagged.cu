// Launches the kernel on the jagged layout.
#include <algorithm>

#include "ops/cuda/launch.h"
#include "ops/sparse-matmul/cuda/jagged.h"
#include "ops/sparse-matmul/cuda/jagged_kernel.cuh"

namespace flashllm::cuda {
namespace {

/// kN columns at a time.
template <int kN>
cudaError_t LaunchFor(const WeightPlan& plan, const MatMulArgs& args, const JaggedParams& params, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(plan.blocks, static_cast<unsigned>((args.n + kN - 1) / kN));
  shape.threads = kJaggedThreads;
  // More than half of a multiprocessor's: where two thread blocks of a grid fit, those that start before the kernel
  // ahead has ended gather on the multiprocessors that it leaves first, and others stay idle.
  const int64_t least = plan.device.shared_bytes / 2 + 1024;
  const JaggedShared areas(kN, plan.in_features, params.partition.windows, params.partition.most_rows);
  shape.shared_bytes = std::max(areas.bytes, least);
  shape.programmatic = args.programmatic && plan.device.compute_capability >= 90;
  return LaunchKernel(JaggedMatMul<kN>, shape, params, stream);
}

}  // namespace

cudaError_t LaunchJagged(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  JaggedParams params = {};
  params.product = MakeProduct(plan, layout, args);
  params.partition = MakeJaggedPartition(plan);
  return (args.n > 1 && plan.columns_at_once > 1 ? LaunchFor<2> : LaunchFor<1>)(plan, args, params, stream);
}

cudaError_t PrepareJagged(DeviceInfo* info) {
  for (auto kernel : {JaggedMatMul<1>, JaggedMatMul<2>}) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, info->shared_bytes);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
