// Which nodes a provider takes, whatever its device, and how it says which it does not.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "provider/ep/options.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

/// "ai.flashllm::SparseMatMul"; ops of the ONNX domain without a domain.
std::string OpName(const OrtNode* node);
bool IsSparseMatMul(const OrtNode* node);

/// The attribute `name`; `otherwise` where it is missing or of another type (the kernel then says what is wrong).
int64_t IntAttribute(const OrtNode* node, const char* name, int64_t otherwise);
float FloatAttribute(const OrtNode* node, const char* name, float otherwise);

std::vector<const OrtNode*> NodesOf(const OrtGraph* graph);
/// Null where an optional input is left out.
std::vector<const OrtValueInfo*> InputsOf(const OrtNode* node);

/// Element type and shape of a value; null where there is no value, or its type is unknown or no tensor's.
const OrtTensorTypeAndShapeInfo* TensorInfoOf(const OrtValueInfo* value);

/// Why a SparseMatMul is not claimed; empty: it is. (Where it is not, RefuseKernel() of op_schema.cc ends the session.)
std::string SparseMatMulReason(const OrtNode* node);

/// Tells the session's log of nodes that are not claimed, once each: ONNX Runtime asks several times for one graph.
class UnclaimedLog {
 public:
  UnclaimedLog(const OrtLogger* logger, const Options& options)
      : logger_(logger), level_(options.log_unclaimed ? ORT_LOGGING_LEVEL_WARNING : ORT_LOGGING_LEVEL_INFO) {}
  void Report(const OrtNode* node, const std::string& reason);

 private:
  const OrtLogger* const logger_;
  const OrtLoggingLevel level_;
  std::set<std::string> reported_;
};

}  // namespace flashllm::ep
