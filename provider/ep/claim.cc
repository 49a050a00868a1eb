#include "provider/ep/claim.h"

#include <cstring>

#include "ops/sparse-matmul/format.h"
#include "provider/ep/op_schema.h"

namespace flashllm::ep {
namespace {

template <typename Number>
Number NumberAttribute(const OrtNode* node, const char* name, OrtOpAttrType type, Number otherwise) {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* status = g_ort.api->Node_GetAttributeByName(node, name, &attribute);
  Number value = otherwise;
  if (status == nullptr && attribute != nullptr) {
    size_t read = 0;
    status = g_ort.api->ReadOpAttr(attribute, type, &value, sizeof value, &read);
    if (status != nullptr) value = otherwise;
  }
  if (status != nullptr) g_ort.api->ReleaseStatus(status);
  return value;
}

}  // namespace

std::string OpName(const OrtNode* node) {
  const char* name = nullptr;
  const char* domain = nullptr;
  Check(g_ort.api->Node_GetOperatorType(node, &name));
  Check(g_ort.api->Node_GetDomain(node, &domain));
  return *domain == '\0' ? name : std::string(domain) + "::" + name;
}

bool IsSparseMatMul(const OrtNode* node) {
  const char* name = nullptr;
  const char* domain = nullptr;
  Check(g_ort.api->Node_GetOperatorType(node, &name));
  Check(g_ort.api->Node_GetDomain(node, &domain));
  return std::strcmp(name, kSparseMatMul) == 0 && std::strcmp(domain, kDomain) == 0;
}

int64_t IntAttribute(const OrtNode* node, const char* name, int64_t otherwise) {
  return NumberAttribute(node, name, ORT_OP_ATTR_INT, otherwise);
}

float FloatAttribute(const OrtNode* node, const char* name, float otherwise) {
  return NumberAttribute(node, name, ORT_OP_ATTR_FLOAT, otherwise);
}

std::vector<const OrtNode*> NodesOf(const OrtGraph* graph) {
  size_t count = 0;
  Check(g_ort.api->Graph_GetNumNodes(graph, &count));
  std::vector<const OrtNode*> nodes(count);
  Check(g_ort.api->Graph_GetNodes(graph, nodes.data(), count));
  return nodes;
}

std::vector<const OrtValueInfo*> InputsOf(const OrtNode* node) {
  size_t count = 0;
  Check(g_ort.api->Node_GetNumInputs(node, &count));
  std::vector<const OrtValueInfo*> inputs(count);
  Check(g_ort.api->Node_GetInputs(node, inputs.data(), count));
  return inputs;
}

const OrtTensorTypeAndShapeInfo* TensorInfoOf(const OrtValueInfo* value) {
  const OrtTypeInfo* info = nullptr;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  if (value == nullptr) return nullptr;
  Check(g_ort.api->GetValueInfoTypeInfo(value, &info));
  if (info != nullptr) Check(g_ort.api->CastTypeInfoToTensorInfo(info, &tensor));
  return tensor;
}

std::string SparseMatMulReason(const OrtNode* node) {
  const int64_t format = IntAttribute(node, "format_version", kFormatVersion);
  if (format > kFormatVersion) {
    return "its packed format has version " + std::to_string(format) + ", newer than this library's " +
           std::to_string(kFormatVersion);
  }
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  if (inputs.size() <= kValues) {
    return "it has " + std::to_string(inputs.size()) + " inputs, expected at least " + std::to_string(kValues + 1);
  }
  constexpr const char* kNames[] = {"X", "bitmap", "row_offsets", "values"};
  for (size_t i = kBitmap; i <= kValues; ++i) {
    bool is_constant = false;
    if (inputs[i] != nullptr) Check(g_ort.api->ValueInfo_IsConstantInitializer(inputs[i], &is_constant));
    if (!is_constant) return std::string("its input ") + kNames[i] + " is not a constant initializer";
  }
  return "";
}

void UnclaimedLog::Report(const OrtNode* node, const std::string& reason) {
  const char* name = nullptr;
  const char* op = nullptr;
  Check(g_ort.api->Node_GetName(node, &name));
  Check(g_ort.api->Node_GetOperatorType(node, &op));
  const std::string message = std::string("flashllm: ") + op + " node '" + name + "' is not claimed: " + reason;
  if (reported_.insert(message).second) Log(logger_, level_, message);
}

}  // namespace flashllm::ep
