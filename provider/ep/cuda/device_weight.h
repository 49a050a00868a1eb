// Packed weights in the memory of a GPU, shared by the kernels of one session that use the same initializers.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "ops/sparse-matmul/cuda/spmm.h"
#include "ops/sparse-matmul/format.h"
#include "provider/ep/cuda/gpu.h"
#include "provider/ep/cuda/memory_pool.h"

namespace flashllm::ep {

/// A weight as the kernels of one GPU want it.
class DeviceWeight {
 public:
  explicit DeviceWeight(std::shared_ptr<MemoryPool> pool) : pool_(std::move(pool)) {}
  ~DeviceWeight();
  DeviceWeight(const DeviceWeight&) = delete;

  const cuda::WeightPlan& plan() const { return plan_; }
  const void* layout() const { return layout_; }
  const void* expanded() const { return expanded_; }         // the weight once more (cuda::ExpandedMatMul), or null
  const cuda::DeviceParts& parts() const { return parts_; }  // null pointers where the layout has everything

  /// Copies a validated weight to the GPU and returns the checksum of what was sent, 0 where it is not asked for.
  /// Throws Error; then the object is of no use.
  uint32_t Send(const PackedWeight& weight, bool with_checksum, Gpu* gpu);
  /// Lays a weight that was sent out for X of `type`, to be fastest with `expected_n` columns (cuda::PlanOptions); with
  /// `expand` keeps it expanded too, where its layout can be. Throws Error likewise.
  void LayOut(const PackedWeight& weight, cuda::ElementType type, int expected_n, bool expand, Gpu* gpu);

 private:
  void FreeParts();

  const std::shared_ptr<MemoryPool> pool_;
  cuda::WeightPlan plan_;
  void* layout_ = nullptr;
  void* expanded_ = nullptr;
  cuda::DeviceParts parts_;
};

class DeviceWeightCache {
 public:
  /// `pool`: memory of the GPU that lives as long as the weights. `expanded_bytes`: how much of it the weights may take
  /// that are kept expanded too.
  DeviceWeightCache(Gpu* gpu, std::shared_ptr<MemoryPool> pool, int64_t expanded_bytes)
      : gpu_(gpu), pool_(std::move(pool)), expanded_left_(expanded_bytes) {}

  /// Validates a claim (whose parts are in host memory and are not needed afterwards) and loads the weight for X of
  /// `type` and `expected_n` columns, or returns what an earlier call made of the same. Throws Error with `where` and
  /// what is wrong.
  std::shared_ptr<const DeviceWeight> Prepare(const PackedWeightClaim& claim, cuda::ElementType type, int expected_n,
                                              bool verify_checksum, const std::string& where);

 private:
  using Key = std::tuple<const void*, const void*, const void*, int64_t, int64_t, int64_t, uint32_t, ValueType,
                         cuda::ElementType, int>;
  Gpu* const gpu_;
  const std::shared_ptr<MemoryPool> pool_;
  std::mutex mutex_;
  int64_t expanded_left_;
  std::map<Key, std::weak_ptr<const DeviceWeight>> loaded_;
};

}  // namespace flashllm::ep
