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
#include "provider/ep/cuda/gpu.h"
#include "provider/ep/cuda/layout_queue.h"
#include "provider/ep/cuda/mapped_files.h"
#include "provider/ep/cuda/memory_pool.h"
#include "provider/ep/options.h"

namespace flashllm::ep {

/// A weight as the kernels of one GPU want it.
class DeviceWeight {
 public:
  /// `pool`: for the layout. `parts_pool`: for what only loading needs, where the layout has everything.
  DeviceWeight(std::shared_ptr<MemoryPool> pool, std::shared_ptr<MemoryPool> parts_pool);
  /// A weight that is on the way is given up.
  ~DeviceWeight();
  DeviceWeight(const DeviceWeight&) = delete;

  const cuda::WeightPlan& plan() const { return plan_; }
  const void* layout() const { return layout_; }  // null where the plan is dense
  /// The weight once more (cuda::ExpandedMatMul), where the plan is dense the only time; or null.
  const void* expanded() const { return expanded_; }
  /// The weight once more, for products of up to so many columns, which that layout is faster for; or null, and none.
  const void* jagged() const { return jagged_; }
  const cuda::WeightPlan& jagged_plan() const { return jagged_plan_; }
  int jagged_columns() const { return jagged_columns_; }
  const cuda::DeviceParts& parts() const { return parts_; }  // null pointers where the layout has everything

  // A weight is made by these, in this order. They throw Error; then, the object is of no use.

  /// Reads the row offsets of a claim whose shapes are right and checks them. Returns what is wrong, or an empty
  /// string.
  std::string ReadOffsets(const PackedWeightClaim& claim, const std::shared_ptr<MappedFiles>& files);
  /// Makes room for the parts.
  void AllocateParts();
  /// Begins to copy the parts to the GPU. Returns when the claim's memory is not needed any more: at once where all of
  /// it is mapped from files that can be read.
  void Send(bool verify_checksum, Gpu* gpu);
  /// Waits until the parts are there and checked. Returns what is wrong, or an empty string.
  std::string AwaitParts();
  /// Lays the weight out for X of `type`, as `options` say; with `expand` keeps it expanded too, where its layout can
  /// be, and with `few` once more as these say (JaggedCopy). Waits for that.
  void LayOut(cuda::ElementType type, cuda::PlanOptions options, bool expand, std::optional<cuda::PlanOptions> few,
              Gpu* gpu, cudaStream_t stream);

 private:
  struct Loading;

  void FreeParts();
  void* Convert(cuda::WeightPlan* plan, cudaStream_t stream);

  const std::shared_ptr<MemoryPool> pool_, parts_pool_;
  cuda::WeightPlan plan_, jagged_plan_;
  void* layout_ = nullptr;
  void* expanded_ = nullptr;
  void* jagged_ = nullptr;
  int jagged_columns_ = 0;
  void* parts_memory_ = nullptr;
  cuda::DeviceParts parts_;
  std::unique_ptr<Loading> loading_;  // until the weight is laid out
};

class DeviceWeightCache {
 public:
  /// `pool`: memory of the GPU that lives as long as the weights. `kept`: how much of it they may take a second time.
  DeviceWeightCache(Gpu* gpu, std::shared_ptr<MemoryPool> pool, const KeptBytes& kept);

  /// Begins to validate a claim (whose parts are in host memory and are not needed afterwards) and to load the weight
  /// for X of `type`, or returns what an earlier call made of the same. Of `options` all calls have the same. The
  /// weight is ready after Finish(). Throws Error with what is wrong, with this weight or an earlier one, and where.
  std::shared_ptr<const DeviceWeight> Prepare(const PackedWeightClaim& claim, cuda::ElementType type,
                                              const cuda::PlanOptions& options, bool verify_checksum,
                                              const std::string& where);

  /// Waits until every weight is ready and gives back what only loading needs. Throws Error where one is wrong or could
  /// not be loaded.
  void Finish();
  const LayoutQueue& layouts() const { return layouts_; }

 private:
  using Key = std::tuple<const void*, const void*, const void*, int64_t, int64_t, int64_t, uint32_t, ValueType,
                         cuda::ElementType>;

  bool PlanExpanded(const PackedWeightClaim& claim, cuda::ElementType type, const cuda::PlanOptions& options);
  std::optional<cuda::PlanOptions> PlanCopy(const PackedWeightClaim& claim, cuda::ElementType type,
                                            const cuda::PlanOptions& options);
  std::shared_ptr<DeviceWeight> Begin(const PackedWeightClaim& claim, bool verify_checksum, const std::string& where);
  void AllocateParts(DeviceWeight* weight, const std::string& where);

  Gpu* const gpu_;
  const std::shared_ptr<MemoryPool> pool_, parts_pool_;
  std::mutex mutex_;
  KeptBytes left_;  // of what may be kept a second time
  std::map<Key, std::weak_ptr<const DeviceWeight>> loaded_;
  std::shared_ptr<MappedFiles> files_;  // while weights are loaded
  LayoutQueue layouts_;
};

}  // namespace flashllm::ep
