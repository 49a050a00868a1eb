// What of an op the GPU kernels do not compute.
#pragma once

#include <string>

#include "provider/ort_api.h"

namespace flashllm::ep {

/// Why a node whose op and types have a kernel is left to ONNX Runtime's CPU provider; empty: it is not.
std::string ReasonAgainstNode(const OrtNode* node);

}  // namespace flashllm::ep
