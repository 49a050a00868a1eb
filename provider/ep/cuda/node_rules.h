// What of an op the GPU kernels do not compute.
#pragma once

#include <cstddef>
#include <string>

#include "provider/ort_api.h"

namespace flashllm::ep {

/// How many inputs of a Concat are declared as host memory, and so how many it may have: shapes have fewer axes.
constexpr size_t kHostConcatInputs = 16;

/// Why a node whose op and types have a kernel is left to ONNX Runtime's CPU provider; empty: it is not.
std::string ReasonAgainstNode(const OrtNode* node);

}  // namespace flashllm::ep
