// Packed weights made ready for this machine, shared by the kernels of one session that use the same initializers.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "ops/sparse-matmul/cpu/sparse_matmul.h"
#include "ops/sparse-matmul/format.h"
#include "provider/ep/options.h"

namespace flashllm::ep {

class WeightCache {
 public:
  /// Validates a claim and makes the weight ready, or returns what an earlier call made of the same parts. The parts
  /// must live as long as the result. Throws Error (ORT_INVALID_GRAPH) with `where` and what is wrong. Safe to call
  /// from several threads.
  std::shared_ptr<const cpu::SparseMatMul> Prepare(const PackedWeightClaim& claim, const Options& options,
                                                   const std::string& where);

 private:
  using Key = std::tuple<const void*, const void*, const void*, int64_t, int64_t, int64_t, uint32_t, ValueType>;
  std::mutex mutex_;
  std::map<Key, std::weak_ptr<const cpu::SparseMatMul>> prepared_;
};

}  // namespace flashllm::ep
