// SparseMatMul as a kernel of ONNX Runtime's CPU device.
#pragma once

#include "provider/ort_api.h"

namespace flashllm::ep {

/// Creates a kernel (an OrtKernelCreateFunc). Its weight's initializers are validated here, at session creation.
OrtStatus* CreateSparseMatMulKernel(void* state, const OrtKernelInfo* info, OrtKernelImpl** kernel) noexcept;

}  // namespace flashllm::ep
