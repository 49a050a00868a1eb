#include "bench/gpu/packed_weights.h"

#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/prefill.h"

namespace flashllm::bench {

void Gpu::Prepare() {
  int device = 0;
  Check(cudaGetDevice(&device), "device");
  Check(cuda::GetDeviceInfo(device, &sparse), "GetDeviceInfo");
  Check(cuda::GetDenseDevice(device, &dense), "GetDenseDevice");
  Check(cuda::PreparePrefill(sparse), "PreparePrefill");
}

PackedWeights::PackedWeights(const Workload& w, const Gpu& gpu, const cuda::PlanOptions& options)
    : gpu_(gpu), parts_{w.bitmap, w.row_offsets, w.values, ValueType::kFloat16} {
  Check(cuda::MakePlan(w.view(), gpu.sparse, options, &plan_), "MakePlan");
  const Memory staging(plan_.staging_bytes);
  Check(cuda::Measure(parts_, staging.get(), nullptr, &plan_), "Measure");
  const Memory layout(plan_.layout_bytes);
  Check(cuda::Convert(plan_, parts_, staging.get(), layout.get(), nullptr), "Convert");
  Check(cudaDeviceSynchronize(), "Convert");
  if (plan_.dense) {
    const Memory expanded(cuda::ExpandedBytes(plan_));
    Check(cuda::Expand(plan_, layout.get(), 0, plan_.blocks, expanded.get(), cuda::WeightOrder::kRows, false, nullptr),
          "Expand");
    Check(cudaDeviceSynchronize(), "Expand");
    plan_.stream_bytes = cuda::ExpandedBytes(plan_);
    copies_ = std::make_unique<Rotation>(expanded.get(), plan_.stream_bytes);
    return;
  }
  copies_ = std::make_unique<Rotation>(layout.get(), plan_.layout_bytes);
  if (!cuda::SupportsPrefill(plan_, cuda::ElementType::kFloat16)) return;
  scratch_bytes_ = cuda::PrefillScratchBytes(plan_);
  scratch_ = std::make_unique<Memory>(scratch_bytes_);
}

bool PackedWeights::IsPrefill(int64_t n) const { return scratch_ != nullptr && cuda::PrefillIsFaster(plan_, n); }

void PackedWeights::Multiply(int i, const cuda::MatMulArgs& args, cudaStream_t stream) const {
  if (plan_.dense) {
    Check(cuda::ExpandedMatMul(plan_, copies_->at(i), gpu_.dense, args, stream), "ExpandedMatMul");
  } else if (IsPrefill(args.n)) {
    Check(cuda::PrefillMatMul(plan_, copies_->at(i), gpu_.dense, args, scratch_->get(), scratch_bytes_, stream),
          "PrefillMatMul");
  } else {
    Check(cuda::Launch(plan_, copies_->at(i), parts_, args, stream), "Launch");
  }
}

}  // namespace flashllm::bench
