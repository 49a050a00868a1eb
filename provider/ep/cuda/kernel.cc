#include "provider/ep/cuda/kernel.h"

#include <cstring>

#include "provider/ep/cuda/call.h"
#include "provider/ep/tensor_view.h"

namespace flashllm::ep {
namespace {

CudaEp* EpOf(const OrtKernelInfo* info) {
  const OrtEp* ep = nullptr;
  Check(g_ort.ep->KernelInfo_GetEp(info, &ep));
  return const_cast<CudaEp*>(static_cast<const CudaEp*>(ep));
}

}  // namespace

int64_t ElementBytes(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return 1;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64:
      return 8;
    default:
      throw Error(ORT_NOT_IMPLEMENTED, "flashllm: element type " + std::to_string(type) + " has no GPU kernel");
  }
}

cuda::DataType DataTypeOf(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return cuda::DataType::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return cuda::DataType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return cuda::DataType::kInt32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return cuda::DataType::kInt64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return cuda::DataType::kBool;
    default:
      throw Error(ORT_NOT_IMPLEMENTED, "flashllm: element type " + std::to_string(type) + " has no GPU kernel");
  }
}

std::string ShapeText(const cuda::Shape& shape) { return ShapeText(shape.dims, static_cast<size_t>(shape.rank)); }

cuda::Shape MakeShape(const int64_t* dims, size_t rank) {
  if (rank > static_cast<size_t>(cuda::kMaxRank)) {
    throw Error(ORT_NOT_IMPLEMENTED, "flashllm: GPU kernels take tensors of up to " + std::to_string(cuda::kMaxRank) +
                                         " axes, but one has " + std::to_string(rank));
  }
  cuda::Shape shape;
  shape.rank = static_cast<int>(rank);
  for (size_t i = 0; i < rank; ++i) shape.dims[i] = dims[i];
  return shape;
}

CudaKernel::CudaKernel(const OrtKernelInfo* info, const char* op)
    : OrtKernelImpl{}, ep_(EpOf(info)), op_(op), node_(NodeName(info)), where_(DescribeNode(info, op)) {
  ort_version_supported = g_ort.version;
  Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
    return Guard([&] {
      auto* kernel = static_cast<CudaKernel*>(self);
      const DeviceScope scope(kernel->ep().gpu().ordinal());
      LaunchTimer timer(&kernel->ep().times());
      kernel->Run(Call(*kernel, context, &timer));
      timer.End(kernel->op_, kernel->node_);
      kernel->ep().CountComputed();
    });
  };
  OrtKernelImpl::Release = [](OrtKernelImpl* self) noexcept { delete static_cast<CudaKernel*>(self); };
}

void CudaKernel::Reject(const std::string& message) const {
  throw Error(ORT_INVALID_ARGUMENT, "flashllm: " + where_ + " " + message);
}

void CudaKernel::CheckLaunch(cudaError_t error) const {
  if (error != cudaSuccess) throw Error(ORT_EP_FAIL, "flashllm: " + CudaErrorText(error, where_.c_str()));
}

Call::Call(const CudaKernel& kernel, OrtKernelContext* context, LaunchTimer* timer)
    : kernel_(kernel), context_(context), timer_(timer) {
  void* stream = nullptr;
  Check(g_ort.api->KernelContext_GetGPUComputeStream(context, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

Tensor Call::Input(size_t index) const {
  Tensor tensor;
  const OrtValue* value = InputOf(context_, index);
  if (value == nullptr) return tensor;
  const int64_t* dims = nullptr;
  size_t rank = 0;
  Check(g_ort.api->GetTensorElementTypeAndShapeDataReference(value, &tensor.type, &dims, &rank));
  tensor.shape = MakeShape(dims, rank);
  Check(g_ort.api->GetTensorData(value, &tensor.data));
  tensor.given = true;
  return tensor;
}

Tensor Call::Required(size_t index, const char* name) const {
  const Tensor tensor = Input(index);
  if (!tensor) kernel_.Reject(std::string("lacks its input ") + name);
  return tensor;
}

void* Call::Output(size_t index, const cuda::Shape& shape, ONNXTensorElementDataType type) const {
  size_t count = 0;
  Check(g_ort.api->KernelContext_GetOutputCount(context_, &count));
  if (index >= count) return nullptr;
  OrtValue* value = OutputOf(context_, index, shape.dims, static_cast<size_t>(shape.rank));
  if (value == nullptr || shape.count() == 0) return nullptr;
  void* data = nullptr;
  Check(g_ort.api->GetTensorMutableData(value, &data));
  if (data != nullptr) return data;
  const std::string reason = LastMemoryFailure();
  throw Error(ORT_EP_FAIL, "flashllm: " + kernel_.where() + ": no memory for an output of shape " + ShapeText(shape) +
                               " (" + std::to_string(shape.count() * ElementBytes(type)) + " bytes)" +
                               (reason.empty() ? "" : ". " + reason));
}

std::vector<int64_t> Call::HostInts(const Tensor& tensor) const {
  std::vector<int64_t> values(static_cast<size_t>(tensor.count()));
  if (tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
    if (!values.empty()) std::memcpy(values.data(), tensor.data, values.size() * 8);
  } else if (tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<const int32_t*>(tensor.data)[i];
  } else {
    kernel_.Reject("has integers of element type " + std::to_string(tensor.type) + ", expected int32 or int64");
  }
  return values;
}

int64_t IntAttribute(const OrtKernelInfo* info, const char* name, int64_t otherwise) {
  int64_t value = 0;
  OrtStatus* status = g_ort.api->KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  g_ort.api->ReleaseStatus(status);
  return otherwise;
}

float FloatAttribute(const OrtKernelInfo* info, const char* name, float otherwise) {
  float value = 0;
  OrtStatus* status = g_ort.api->KernelInfoGetAttribute_float(info, name, &value);
  if (status == nullptr) return value;
  g_ort.api->ReleaseStatus(status);
  return otherwise;
}

std::vector<int64_t> IntsAttribute(const OrtKernelInfo* info, const char* name) {
  size_t size = 0;
  OrtStatus* status = g_ort.api->KernelInfoGetAttributeArray_int64(info, name, nullptr, &size);
  std::vector<int64_t> values(size);
  if (status == nullptr && size > 0)
    status = g_ort.api->KernelInfoGetAttributeArray_int64(info, name, values.data(), &size);
  if (status == nullptr) return values;
  g_ort.api->ReleaseStatus(status);
  return {};
}

ONNXTensorElementDataType InputType(const OrtKernelInfo* info, size_t index) {
  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  OrtTypeInfo* raw = nullptr;
  OrtStatus* status = g_ort.api->KernelInfo_GetInputTypeInfo(info, index, &raw);
  if (status != nullptr) {
    g_ort.api->ReleaseStatus(status);
    return element;
  }
  const Owned<OrtTypeInfo> type(raw);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  Check(g_ort.api->CastTypeInfoToTensorInfo(raw, &tensor));
  if (tensor != nullptr) Check(g_ort.api->GetTensorElementType(tensor, &element));
  return element;
}

bool IsConstant(const OrtKernelInfo* info, size_t index) {
  int constant = 0;
  const OrtValue* value = nullptr;
  Check(g_ort.api->KernelInfoGetConstantInput_tensor(info, index, &constant, &value));
  return constant != 0;
}

int Axis(int64_t axis, int rank, const std::string& where) {
  if (axis < -rank || axis >= rank) {
    throw Error(ORT_INVALID_ARGUMENT, "flashllm: " + where + " has axis " + std::to_string(axis) +
                                          ", but its tensor has " + std::to_string(rank) + " axes");
  }
  return static_cast<int>(axis < 0 ? axis + rank : axis);
}

}  // namespace flashllm::ep
