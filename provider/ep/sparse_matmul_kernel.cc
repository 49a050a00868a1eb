#include "provider/ep/sparse_matmul_kernel.h"

#include <atomic>
#include <exception>
#include <vector>

#include "provider/ep/ep.h"
#include "provider/ep/op_schema.h"

namespace flashllm::ep {
namespace {

/// Type, shape and data of a tensor, borrowed.
struct TensorView {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

TensorView ViewOf(const OrtValue* value) {
  TensorView view;
  const int64_t* dims = nullptr;
  size_t rank = 0;
  Check(g_ort.api->GetTensorElementTypeAndShapeDataReference(value, &view.type, &dims, &rank));
  view.shape.assign(dims, dims + rank);
  Check(g_ort.api->GetTensorData(value, &view.data));
  return view;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t IntAttribute(const OrtKernelInfo* info, const std::string& where, const char* name) {
  int64_t value = 0;
  OrtStatus* status = g_ort.api->KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  g_ort.api->ReleaseStatus(status);
  throw Error(ORT_INVALID_GRAPH,
              "flashllm: " + where + " has no int attribute '" + name + "'. The model was made by a faulty tool");
}

cpu::Activation ReadActivation(const OrtKernelInfo* info, const std::string& where) {
  size_t size = 0;
  OrtStatus* status = g_ort.api->KernelInfoGetAttribute_string(info, "activation", nullptr, &size);
  if (status != nullptr) {  // left out: the default
    g_ort.api->ReleaseStatus(status);
    return cpu::Activation::kNone;
  }
  std::string text(size, '\0');
  Check(g_ort.api->KernelInfoGetAttribute_string(info, "activation", text.data(), &size));
  text.resize(size > 0 ? size - 1 : 0);  // the terminating zero is counted
  if (text.empty() || text == "none") return cpu::Activation::kNone;
  if (text == "relu") return cpu::Activation::kRelu;
  throw Error(ORT_INVALID_GRAPH, "flashllm: " + where + " has activation '" + text + "', expected none or relu");
}

std::string NodeName(const OrtKernelInfo* info) {
  size_t size = 0;
  Check(g_ort.api->KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  Check(g_ort.api->KernelInfo_GetNodeName(info, name.data(), &size));
  name.resize(size > 0 ? size - 1 : 0);
  return std::string(kSparseMatMul) + " node '" + name + "'";
}

ValueType ValueTypeOf(ONNXTensorElementDataType type, const std::string& where) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return ValueType::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return ValueType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return ValueType::kBFloat16;
    default:
      throw Error(ORT_INVALID_GRAPH, "flashllm: `values` of " + where + " has element type " + std::to_string(type) +
                                         ", expected float (1), float16 (10) or bfloat16 (16)");
  }
}

class Kernel : public OrtKernelImpl {
 public:
  Kernel(const OrtKernelInfo* info, Ep* ep);
  void Run(OrtKernelContext* context);

 private:
  void Prepare(const TensorView& bitmap, const TensorView& row_offsets, const TensorView& values);

  Ep* const ep_;
  const std::string where_;
  PackedWeightClaim claim_;
  cpu::Activation activation_ = cpu::Activation::kNone;
  std::shared_ptr<const cpu::SparseMatMul> weight_;
};

Kernel::Kernel(const OrtKernelInfo* info, Ep* ep) : OrtKernelImpl{}, ep_(ep), where_(NodeName(info)) {
  ort_version_supported = g_ort.version;
  Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<Kernel*>(self)->Run(context); });
  };
  Release = [](OrtKernelImpl* self) noexcept { delete static_cast<Kernel*>(self); };
  claim_.format_version = IntAttribute(info, where_, "format_version");
  claim_.out_features = IntAttribute(info, where_, "out_features");
  claim_.in_features = IntAttribute(info, where_, "in_features");
  claim_.nnz = IntAttribute(info, where_, "nnz");
  const int64_t checksum = IntAttribute(info, where_, "checksum");
  if (checksum < 0 || checksum > 0xFFFFFFFF) {
    throw Error(ORT_INVALID_GRAPH,
                "flashllm: " + where_ + " has checksum " + std::to_string(checksum) + ", expected 0 to 4294967295");
  }
  claim_.checksum = static_cast<uint32_t>(checksum);
  activation_ = ReadActivation(info, where_);

  TensorView parts[3];
  for (size_t i = 0; i < 3; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(g_ort.api->KernelInfoGetConstantInput_tensor(info, kBitmap + i, &is_constant, &value));
    if (!is_constant || value == nullptr) {
      throw Error(ORT_FAIL, "flashllm: ONNX Runtime did not hand over the constant weight of " + where_ +
                                ". Please report this with the model's structure");
    }
    parts[i] = ViewOf(value);
  }
  Prepare(parts[0], parts[1], parts[2]);
}

void Kernel::Prepare(const TensorView& bitmap, const TensorView& row_offsets, const TensorView& values) {
  if (bitmap.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 || row_offsets.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: bitmap and row_offsets of " + where_ + " have element types " +
                                       std::to_string(bitmap.type) + " and " + std::to_string(row_offsets.type) +
                                       ", expected uint8 (2) and int32 (6)");
  }
  if (bitmap.shape.size() != 2 || row_offsets.shape.size() != 1 || values.shape.size() != 1) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: bitmap, row_offsets and values of " + where_ + " have shapes " +
                                       ShapeText(bitmap.shape) + ", " + ShapeText(row_offsets.shape) + " and " +
                                       ShapeText(values.shape) + ", expected ranks 2, 1 and 1");
  }
  claim_.value_type = ValueTypeOf(values.type, where_);
  claim_.bitmap = static_cast<const uint8_t*>(bitmap.data);
  claim_.bitmap_rows = bitmap.shape[0];
  claim_.bitmap_cols = bitmap.shape[1];
  claim_.row_offsets = static_cast<const int32_t*>(row_offsets.data);
  claim_.row_offsets_length = row_offsets.shape[0];
  claim_.values = values.data;
  claim_.values_length = values.shape[0];
  weight_ = ep_->weights().Prepare(claim_, ep_->options(), where_);
}

/// Runs `body` on ONNX Runtime's thread pool. The first exception of a part is thrown when all have ended.
void RunParallel(OrtKernelContext* context, int64_t count, const std::function<void(int64_t)>& body) {
  struct Shared {
    const std::function<void(int64_t)>* body;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } shared{&body, {}, {}};
  const auto part = [](void* data, size_t index) {
    auto* shared = static_cast<Shared*>(data);
    try {
      (*shared->body)(static_cast<int64_t>(index));
    } catch (...) {
      if (!shared->failed.exchange(true)) shared->error = std::current_exception();
    }
  };
  Check(g_ort.api->KernelContext_ParallelFor(context, part, static_cast<size_t>(count), static_cast<size_t>(count),
                                             &shared));
  if (shared.error) std::rethrow_exception(shared.error);
}

/// Input `index`, or null where the node leaves it out.
const OrtValue* InputOf(const OrtKernelContext* context, size_t index) {
  size_t count = 0;
  Check(g_ort.api->KernelContext_GetInputCount(context, &count));
  if (index >= count) return nullptr;
  const OrtValue* value = nullptr;
  Check(g_ort.api->KernelContext_GetInput(context, index, &value));
  return value;
}

void Kernel::Run(OrtKernelContext* context) {
  const TensorView x = ViewOf(InputOf(context, kX));
  if (x.shape.size() < 2 || x.shape.back() != claim_.in_features) {
    throw Error(ORT_INVALID_ARGUMENT, "flashllm: X of " + where_ + " has shape " + ShapeText(x.shape) +
                                          ", expected rank 2 or more and a last dimension of " +
                                          std::to_string(claim_.in_features));
  }
  std::vector<int64_t> y_shape = x.shape;
  y_shape.back() = claim_.out_features;
  cpu::MatMulArgs args;
  args.type = x.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? cpu::ElementType::kFloat16 : cpu::ElementType::kFloat32;
  args.activation = activation_;
  args.x = x.data;
  args.n = 1;
  for (size_t i = 0; i + 1 < x.shape.size(); ++i) args.n *= x.shape[i];

  const auto optional = [&](Input index, const char* name, const std::vector<int64_t>& shape) -> const void* {
    const OrtValue* value = InputOf(context, index);
    if (value == nullptr) return nullptr;
    const TensorView view = ViewOf(value);
    if (view.shape != shape || view.type != x.type) {
      throw Error(ORT_INVALID_ARGUMENT, std::string("flashllm: ") + name + " of " + where_ + " has shape " +
                                            ShapeText(view.shape) + " and element type " + std::to_string(view.type) +
                                            ", expected " + ShapeText(shape) + " and " + std::to_string(x.type));
    }
    return view.data;
  };
  args.bias = optional(kBias, "bias", {claim_.out_features});
  args.residual = optional(kResidual, "residual", y_shape);

  OrtValue* y = nullptr;
  Check(g_ort.api->KernelContext_GetOutput(context, 0, y_shape.data(), y_shape.size(), &y));
  if (args.n == 0) return;
  Check(g_ort.api->GetTensorMutableData(y, &args.y));
  weight_->Run(args, ep_->options().threads, [context](int64_t count, const std::function<void(int64_t)>& body) {
    RunParallel(context, count, body);
  });
}

}  // namespace

OrtStatus* CreateSparseMatMulKernel(void*, const OrtKernelInfo* info, OrtKernelImpl** kernel) noexcept {
  return Guard([&] {
    const OrtEp* ep = nullptr;
    Check(g_ort.ep->KernelInfo_GetEp(info, &ep));
    *kernel = new Kernel(info, const_cast<Ep*>(static_cast<const Ep*>(ep)));
  });
}

}  // namespace flashllm::ep
