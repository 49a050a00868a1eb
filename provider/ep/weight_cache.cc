#include "provider/ep/weight_cache.h"

#include "provider/ort_api.h"

namespace flashllm::ep {

std::shared_ptr<const cpu::SparseMatMul> WeightCache::Prepare(const PackedWeightClaim& claim, const Options& options,
                                                              const std::string& where) {
  const Key key{claim.bitmap,      claim.row_offsets, claim.values,   claim.out_features,
                claim.in_features, claim.nnz,         claim.checksum, claim.value_type};
  std::lock_guard<std::mutex> lock(mutex_);
  std::weak_ptr<const cpu::SparseMatMul>& entry = prepared_[key];
  std::shared_ptr<const cpu::SparseMatMul> ready = entry.lock();
  if (ready != nullptr) return ready;
  PackedWeight weight;
  const std::string wrong = Validate(claim, options.verify_checksum, &weight);
  if (!wrong.empty()) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: the packed weight of " + where + " is not valid: " + wrong);
  }
  ready = cpu::MakeSparseMatMul(weight, options.isa);
  entry = ready;
  return ready;
}

}  // namespace flashllm::ep
