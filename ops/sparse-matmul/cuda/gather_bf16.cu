// The gather kernel for bfloat16 weights: float16 X is split into two bfloat16 terms, exactly, so it takes two
// products.
#include "ops/sparse-matmul/cuda/gather_launch.cuh"

namespace flashllm::cuda {
namespace {

using Columns8 = GatherInstance<1, 16, 2, true>;
using Columns16 = GatherInstance<2, 16, 2, true>;
using Columns32 = GatherInstance<4, 16, 1, true>;
using SmallShared = GatherInstance<4, 8, 1, true>;  // GPUs with 100 KB, or weights with dense spots

}  // namespace

cudaError_t LaunchGatherBf16(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  const GatherParams params = MakeParams(plan, layout, args);
  if (args.n <= 8 && Columns8::Stages(plan) > 0) return Columns8::Launch(plan, params, args.programmatic, stream);
  if (args.n <= 16 && Columns16::Stages(plan) > 0) return Columns16::Launch(plan, params, args.programmatic, stream);
  if (Columns32::Stages(plan) > 0) return Columns32::Launch(plan, params, args.programmatic, stream);
  if (SmallShared::Stages(plan) > 0) return SmallShared::Launch(plan, params, args.programmatic, stream);
  return cudaErrorInvalidConfiguration;
}

cudaError_t PrepareGatherBf16(DeviceInfo* info) {
  for (auto prepare : {Columns8::Prepare, Columns16::Prepare, Columns32::Prepare, SmallShared::Prepare}) {
    const cudaError_t error = prepare(*info);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
