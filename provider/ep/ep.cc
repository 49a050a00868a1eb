#include "provider/ep/ep.h"

namespace flashllm::ep {

Ep::Ep(const Options& options, const OrtKernelRegistry* registry, const OrtLogger* logger)
    : options_(options), registry_(registry), unclaimed_(logger, options) {
  GetCapability = [](OrtEp* self, const OrtGraph* graph, OrtEpGraphSupportInfo* support) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<Ep*>(self)->Claim(graph, support); });
  };
  GetKernelRegistry = [](OrtEp* self, const OrtKernelRegistry** registry) noexcept -> OrtStatus* {
    *registry = static_cast<Ep*>(self)->registry_;
    return nullptr;
  };
  IsConcurrentRunSupported = [](OrtEp*, bool* supported) noexcept -> OrtStatus* {
    *supported = true;
    return nullptr;
  };
}

void Ep::Claim(const OrtGraph* graph, OrtEpGraphSupportInfo* support) {
  for (const OrtNode* node : NodesOf(graph)) {
    if (!IsSparseMatMul(node)) continue;
    const std::string reason = SparseMatMulReason(node);
    if (reason.empty()) {
      Check(g_ort.ep->EpGraphSupportInfo_AddSingleNode(support, node));
    } else {
      unclaimed_.Report(node, reason);
    }
  }
}

}  // namespace flashllm::ep
