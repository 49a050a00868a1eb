// The execution provider of one session: which nodes it takes, its options and its weights.
#pragma once

#include "provider/ep/claim.h"
#include "provider/ep/options.h"
#include "provider/ep/weight_cache.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

/// The provider on either device, as the factory hands it to ONNX Runtime and takes it back.
class SessionEp : public OrtEp {
 public:
  SessionEp() : OrtEp{} {
    ort_version_supported = g_ort.version;
    GetName = [](const OrtEp*) noexcept { return kEpName; };
  }
  virtual ~SessionEp() = default;
};

/// The provider on the CPU.
class Ep : public SessionEp {
 public:
  /// `registry` must outlive the provider.
  Ep(const Options& options, const OrtKernelRegistry* registry, const OrtLogger* logger);

  const Options& options() const { return options_; }
  WeightCache& weights() { return weights_; }

 private:
  void Claim(const OrtGraph* graph, OrtEpGraphSupportInfo* support);

  const Options options_;
  const OrtKernelRegistry* const registry_;
  WeightCache weights_;
  UnclaimedLog unclaimed_;
};

}  // namespace flashllm::ep
