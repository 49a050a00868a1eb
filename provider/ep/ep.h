// The execution provider of one session: which nodes it takes, its options and its weights.
#pragma once

#include <mutex>
#include <set>
#include <string>

#include "provider/ep/options.h"
#include "provider/ep/weight_cache.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

class Ep : public OrtEp {
 public:
  /// `registry` must outlive the provider.
  Ep(const Options& options, const OrtKernelRegistry* registry, const OrtLogger* logger);

  const Options& options() const { return options_; }
  WeightCache& weights() { return weights_; }

 private:
  void Claim(const OrtGraph* graph, OrtEpGraphSupportInfo* support);
  void Report(const OrtNode* node, const std::string& reason);

  const Options options_;
  const OrtKernelRegistry* const registry_;
  const OrtLogger* const logger_;
  WeightCache weights_;
  std::set<std::string> reported_;  // ONNX Runtime asks several times for one graph
};

}  // namespace flashllm::ep
