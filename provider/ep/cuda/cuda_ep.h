// The execution provider of one session on one GPU.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "provider/ep/claim.h"
#include "provider/ep/cuda/device_weight.h"
#include "provider/ep/cuda/fault_board.h"
#include "provider/ep/cuda/gpu.h"
#include "provider/ep/cuda/graph_capture.h"
#include "provider/ep/cuda/profiler.h"
#include "provider/ep/cuda/stream.h"
#include "provider/ep/cuda/upload.h"
#include "provider/ep/cuda/weight_memory.h"
#include "provider/ep/ep.h"
#include "provider/ep/options.h"

namespace flashllm::ep {

class CudaEp : public SessionEp {
 public:
  /// `registry` and `gpu` must outlive the provider. Throws Error where the GPU cannot be used.
  CudaEp(const Options& options, Gpu* gpu, const OrtKernelRegistry* registry, const OrtLogger* logger);

  const Options& options() const { return options_; }
  Gpu& gpu() { return *gpu_; }
  /// Memory of the session's runs.
  MemoryPool& pool() { return *pool_; }
  DeviceWeightCache& weights() { return weights_; }
  /// How the session's weights are to be laid out, all alike. For kernels that are being created.
  const cuda::PlanOptions& plan_options();
  FaultBoard& faults() { return *faults_; }
  KernelTimes& times() { return *times_; }
  /// Whether kernels may start while the one before them still runs (programmatic dependent launch). Not in a profile,
  /// which times each by itself.
  bool programmatic() const { return gpu_->compute_capability() >= 90 && !times_->active(); }
  /// A kernel has enqueued its work.
  void CountComputed() {
    const size_t count = computed_.fetch_add(1, std::memory_order_relaxed) + 1;
    if (graphs_) graphs_->Computed(count);
  }

 private:
  void SetNodes();
  void SetMemory();
  void SetRuns();
  void SetGraphs();
  void EndLoading();
  void Claim(const OrtGraph* graph, OrtEpGraphSupportInfo* support);
  void CountWeight(const OrtNode* node);
  bool HasRoomForFastest() const;
  void EndRun(const OrtRunOptions* run_options);

  const std::chrono::steady_clock::time_point made_ = std::chrono::steady_clock::now();
  const Options options_;
  Gpu* const gpu_;
  const OrtKernelRegistry* const registry_;
  const OrtLogger* const logger_;
  const std::shared_ptr<MemoryPool> pool_, pinned_pool_, weight_pool_;
  std::optional<UploadUse> loading_;  // until the session is made; before the weights, which it outlives
  DeviceWeightCache weights_;
  WeightMemory expected_;
  std::once_flag plan_options_made_;
  cuda::PlanOptions plan_options_;
  const std::shared_ptr<FaultBoard> faults_;
  const std::shared_ptr<KernelTimes> times_;
  const std::shared_ptr<RunStreams> streams_;  // where runs are not recorded
  std::optional<GraphCapture> graphs_;
  std::atomic<size_t> computed_{0};
  UnclaimedLog unclaimed_;
};

}  // namespace flashllm::ep
