#include "provider/ep/tensor_view.h"

namespace flashllm::ep {

TensorView ViewOf(const OrtValue* value) {
  TensorView view;
  const int64_t* dims = nullptr;
  size_t rank = 0;
  Check(g_ort.api->GetTensorElementTypeAndShapeDataReference(value, &view.type, &dims, &rank));
  view.shape.assign(dims, dims + rank);
  Check(g_ort.api->GetTensorData(value, &view.data));
  return view;
}

std::string ShapeText(const int64_t* dims, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

std::string NodeName(const OrtKernelInfo* info) {
  size_t size = 0;
  Check(g_ort.api->KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  Check(g_ort.api->KernelInfo_GetNodeName(info, name.data(), &size));
  name.resize(size > 0 ? size - 1 : 0);
  return name;
}

std::string DescribeNode(const OrtKernelInfo* info, const char* op) {
  return std::string(op) + " node '" + NodeName(info) + "'";
}

const OrtValue* InputOf(const OrtKernelContext* context, size_t index) {
  size_t count = 0;
  Check(g_ort.api->KernelContext_GetInputCount(context, &count));
  if (index >= count) return nullptr;
  const OrtValue* value = nullptr;
  Check(g_ort.api->KernelContext_GetInput(context, index, &value));
  return value;
}

OrtValue* OutputOf(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank) {
  OrtValue* value = nullptr;
  Check(g_ort.api->KernelContext_GetOutput(context, index, dims, rank, &value));
  return value;
}

}  // namespace flashllm::ep
