// What the packed weights of a session will take of a GPU's memory, which decides how they are laid out.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "ops/sparse-matmul/cuda/spmm.h"
#include "ops/sparse-matmul/format.h"
#include "provider/ep/options.h"

namespace flashllm::ep {

/// Sums over the weights of a session, known before any of them is read.
class WeightMemory {
 public:
  /// A weight of a node, for X of `type` and `expected_n` columns. Nodes that share a weight give it the same `name`:
  /// it counts once. Only shape, type and nnz are read; one that they say cannot be is left out, since its kernel will
  /// not be made.
  void Add(const std::string& name, const PackedWeight& weight, const cuda::DeviceInfo& device, int expected_n,
           cuda::ElementType type);

  double fastest() const { return fastest_; }  // bytes, laid out as the plan chooses
  double compact() const { return compact_; }  // in columns of halves, or jagged where that takes no more
  double dense() const { return dense_; }      // all of them once more, expanded
  double jagged() const { return jagged_; }    // once more those that a second, jagged layout is kept of
  int64_t nnz() const { return nnz_; }

 private:
  std::set<std::string> names_;
  double fastest_ = 0, compact_ = 0, dense_ = 0, jagged_ = 0;
  int64_t nnz_ = 0;
};

/// How a weight is laid out once more for one or two columns, where that can be, is faster and is not how `options` lay
/// it out already. `weight` as in WeightMemory::Add.
std::optional<cuda::PlanOptions> JaggedCopy(const PackedWeight& weight, const cuda::DeviceInfo& device,
                                            const cuda::PlanOptions& options, cuda::ElementType type);

/// Whether a session may lay its weights out as is fastest: of the memory that compact layouts, and what is `kept`
/// besides, would leave of the `free` bytes, at least half must remain, for caches and runs.
bool FastestFit(const WeightMemory& weights, const KeptBytes& kept, int64_t free);

}  // namespace flashllm::ep
