// Tensors of ONNX Runtime as kernels see them, and how messages name them.
#pragma once

#include <string>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::ep {

/// Type, shape and data of a tensor, borrowed.
struct TensorView {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

TensorView ViewOf(const OrtValue* value);

/// "[2, 3]".
std::string ShapeText(const int64_t* dims, size_t rank);
inline std::string ShapeText(const std::vector<int64_t>& shape) { return ShapeText(shape.data(), shape.size()); }

std::string NodeName(const OrtKernelInfo* info);
/// "LayerNormalization node '/model/norm'".
std::string DescribeNode(const OrtKernelInfo* info, const char* op);

/// Input `index`, or null where the node leaves it out.
const OrtValue* InputOf(const OrtKernelContext* context, size_t index);

/// Output `index` with a shape, allocated by ONNX Runtime; null where nothing wants it.
OrtValue* OutputOf(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank);

}  // namespace flashllm::ep
