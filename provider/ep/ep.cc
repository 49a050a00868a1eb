#include "provider/ep/ep.h"

#include <cstring>
#include <vector>

#include "ops/sparse-matmul/format.h"
#include "provider/ep/op_schema.h"

namespace flashllm::ep {
namespace {

bool IsSparseMatMul(const OrtNode* node) {
  const char* name = nullptr;
  const char* domain = nullptr;
  Check(g_ort.api->Node_GetOperatorType(node, &name));
  Check(g_ort.api->Node_GetDomain(node, &domain));
  return std::strcmp(name, kSparseMatMul) == 0 && std::strcmp(domain, kDomain) == 0;
}

/// The int attribute `name`; `otherwise` where it is missing or no int (the kernel then says what is wrong).
int64_t IntAttribute(const OrtNode* node, const char* name, int64_t otherwise) {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* status = g_ort.api->Node_GetAttributeByName(node, name, &attribute);
  int64_t value = otherwise;
  if (status == nullptr && attribute != nullptr) {
    size_t read = 0;
    status = g_ort.api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &read);
    if (status != nullptr) value = otherwise;
  }
  if (status != nullptr) g_ort.api->ReleaseStatus(status);
  return value;
}

/// Why a SparseMatMul is not claimed; empty: it is. (Where it is not, RefuseKernel() of op_schema.cc ends the session.)
std::string ReasonAgainst(const OrtNode* node) {
  const int64_t format = IntAttribute(node, "format_version", kFormatVersion);
  if (format > kFormatVersion) {
    return "its packed format has version " + std::to_string(format) + ", newer than this library's " +
           std::to_string(kFormatVersion);
  }
  size_t count = 0;
  Check(g_ort.api->Node_GetNumInputs(node, &count));
  if (count <= kValues)
    return "it has " + std::to_string(count) + " inputs, expected at least " + std::to_string(kValues + 1);
  std::vector<const OrtValueInfo*> inputs(count);
  Check(g_ort.api->Node_GetInputs(node, inputs.data(), count));
  constexpr const char* kNames[] = {"X", "bitmap", "row_offsets", "values"};
  for (size_t i = kBitmap; i <= kValues; ++i) {
    bool is_constant = false;
    if (inputs[i] != nullptr) Check(g_ort.api->ValueInfo_IsConstantInitializer(inputs[i], &is_constant));
    if (!is_constant) return std::string("its input ") + kNames[i] + " is not a constant initializer";
  }
  return "";
}

}  // namespace

Ep::Ep(const Options& options, const OrtKernelRegistry* registry, const OrtLogger* logger)
    : OrtEp{}, options_(options), registry_(registry), logger_(logger) {
  ort_version_supported = g_ort.version;
  GetName = [](const OrtEp*) noexcept { return kEpName; };
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
  size_t count = 0;
  Check(g_ort.api->Graph_GetNumNodes(graph, &count));
  std::vector<const OrtNode*> nodes(count);
  Check(g_ort.api->Graph_GetNodes(graph, nodes.data(), count));
  for (const OrtNode* node : nodes) {
    if (!IsSparseMatMul(node)) continue;
    const std::string reason = ReasonAgainst(node);
    if (reason.empty()) {
      Check(g_ort.ep->EpGraphSupportInfo_AddSingleNode(support, node));
    } else {
      Report(node, reason);
    }
  }
}

void Ep::Report(const OrtNode* node, const std::string& reason) {
  const char* name = nullptr;
  Check(g_ort.api->Node_GetName(node, &name));
  const std::string message = std::string("flashllm: SparseMatMul node '") + name + "' is not claimed: " + reason;
  if (!reported_.insert(message).second) return;
  Log(logger_, options_.log_unclaimed ? ORT_LOGGING_LEVEL_WARNING : ORT_LOGGING_LEVEL_INFO, message);
}

}  // namespace flashllm::ep
