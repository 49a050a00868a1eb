// A weight packed on the GPU, in copies, and its product as the provider computes it.
#pragma once

#include <memory>

#include "bench/gpu/memory.h"
#include "bench/gpu/rotation.h"
#include "bench/gpu/workload.h"
#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::bench {

/// The GPU as the kernels see it.
struct Gpu {
  cuda::DeviceInfo sparse;
  cuda::DenseDevice dense;

  /// Readies the kernels of the current device.
  void Prepare();
};

class PackedWeights {
 public:
  PackedWeights(const Workload& workload, const Gpu& gpu, const cuda::PlanOptions& options);

  const cuda::WeightPlan& plan() const { return plan_; }
  const cuda::DeviceParts& parts() const { return parts_; }
  /// Copy i of the packed weight; where the plan is dense, expanded.
  const void* at(int i) const { return copies_->at(i); }
  int launches() const { return copies_->launches(); }
  /// Whether n columns are multiplied by way of expansion.
  bool IsPrefill(int64_t n) const;
  /// Multiplies copy i.
  void Multiply(int i, const cuda::MatMulArgs& args, cudaStream_t stream) const;

 private:
  const Gpu& gpu_;
  const cuda::DeviceParts parts_;
  cuda::WeightPlan plan_;
  std::unique_ptr<Rotation> copies_;
  std::unique_ptr<Memory> scratch_;
  int64_t scratch_bytes_ = 0;
};

}  // namespace flashllm::bench
