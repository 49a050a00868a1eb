// Packed weights in the memory of a GPU, shared by the kernels of one session that use the same initializers.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "ops/sparse-matmul/cuda/spmm.h"
#include "ops/sparse-matmul/format.h"
#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/gpu.h"
#include "provider/ep/cuda/layout_queue.h"
#include "provider/ep/cuda/memory_pool.h"
#include "provider/ep/cuda/upload.h"

namespace flashllm::ep {

/// A weight as the kernels of one GPU want it.
class DeviceWeight {
 public:
  /// `pool`: for the layout. `parts_pool`: for what only loading needs, where the layout has everything.
  DeviceWeight(std::shared_ptr<MemoryPool> pool, std::shared_ptr<MemoryPool> parts_pool)
      : pool_(std::move(pool)), parts_pool_(std::move(parts_pool)) {}
  ~DeviceWeight();
  DeviceWeight(const DeviceWeight&) = delete;

  const cuda::WeightPlan& plan() const { return plan_; }
  const void* layout() const { return layout_; }
  const cuda::DeviceParts& parts() const { return parts_; }  // null pointers where the layout has everything

  // A weight is made by these three, in this order. They throw Error; after Send and LayOut, the object is then of no
  // use.

  /// Makes room for the parts of a claim whose dimensions are right.
  void AllocateParts(const PackedWeightClaim& claim);
  /// Copies the parts to the GPU and returns the checksum of what is sent, 0 where it is not asked for. Has read the
  /// host's memory when it returns, but the bytes may be on the way still.
  uint32_t Send(const PackedWeightClaim& claim, const UploadExtras& extras, Gpu* gpu);
  /// Lays a weight that was sent out for X of `type`, to be fastest with `expected_n` columns (cuda::PlanOptions), and
  /// waits for that. Of `weight` only the shape and the row offsets are read.
  void LayOut(const PackedWeight& weight, cuda::ElementType type, int expected_n, Gpu* gpu, cudaStream_t stream);

 private:
  void FreeParts();

  const std::shared_ptr<MemoryPool> pool_, parts_pool_;
  cuda::WeightPlan plan_;
  void* layout_ = nullptr;
  void* parts_memory_ = nullptr;
  cuda::DeviceParts parts_;
  std::optional<OwnEvent> arrived_;
};

class DeviceWeightCache {
 public:
  /// `pool`: memory of the GPU that lives as long as the weights.
  DeviceWeightCache(Gpu* gpu, std::shared_ptr<MemoryPool> pool);

  /// Validates a claim (whose parts are in host memory and are not needed afterwards) and loads the weight for X of
  /// `type` and `expected_n` columns, or returns what an earlier call made of the same. The weight is ready after
  /// Finish(). Throws Error with `where` and what is wrong.
  std::shared_ptr<const DeviceWeight> Prepare(const PackedWeightClaim& claim, cuda::ElementType type, int expected_n,
                                              bool verify_checksum, const std::string& where);

  /// Waits until every weight is ready and gives back what only loading needs. Throws Error where one could not be laid
  /// out.
  void Finish();
  const LayoutQueue& layouts() const { return layouts_; }

 private:
  using Key = std::tuple<const void*, const void*, const void*, int64_t, int64_t, int64_t, uint32_t, ValueType,
                         cuda::ElementType, int>;

  void Allocate(const PackedWeightClaim& claim, DeviceWeight* weight);

  Gpu* const gpu_;
  const std::shared_ptr<MemoryPool> pool_, parts_pool_;
  std::mutex mutex_;
  std::map<Key, std::weak_ptr<const DeviceWeight>> loaded_;
  LayoutQueue layouts_;
};

}  // namespace flashllm::ep
