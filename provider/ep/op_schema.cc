#include "provider/ep/op_schema.h"

#include <atomic>
#include <string>

#include "ops/sparse-matmul/format.h"
#include "provider/ep/options.h"
#include "provider/ep/tensor_view.h"

namespace flashllm::ep {

// ONNX Runtime can infer the type of an output from a dynamic input only where there is one such input. X and `values`
// vary independently, so that the op is offered once for each pair of types; ONNX Runtime merges schemas of one name.
struct SchemaOp : OrtCustomOp {
  ONNXTensorElementDataType x_type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  ONNXTensorElementDataType values_type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

namespace {

ONNXTensorElementDataType InputType(const OrtCustomOp* op, size_t index) {
  const auto* self = static_cast<const SchemaOp*>(op);
  switch (index) {
    case kBitmap:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case kRowOffsets:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case kValues:
      return self->values_type;
    default:
      return self->x_type;
  }
}

/// The int attribute `name`, or `otherwise` where the node lacks it.
int64_t IntAttribute(const OrtShapeInferContext* context, const char* name, int64_t otherwise) {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* status = g_ort.api->ShapeInferContext_GetAttribute(context, name, &attribute);
  if (status == nullptr && attribute != nullptr) {
    int64_t value = 0;
    size_t read = 0;
    status = g_ort.api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &read);
    if (status == nullptr) return value;
  }
  if (status != nullptr) g_ort.api->ReleaseStatus(status);
  return otherwise;
}

/// Y has the type of X, and its shape with out_features in place of the last dimension. Known and symbolic dimensions
/// are kept. ONNX Runtime calls the function of the first of the merged ops, whatever the node's types: they must be
/// read from the context.
void InferShape(OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(g_ort.api->ShapeInferContext_GetInputTypeShape(context, kX, &raw));  // owned by the context
  const OrtTensorTypeAndShapeInfo* x = raw;
  if (!g_ort.api->TensorTypeAndShape_HasShape(x)) return;
  size_t rank = 0;
  ONNXTensorElementDataType type;
  Check(g_ort.api->GetTensorElementType(x, &type));
  Check(g_ort.api->GetDimensionsCount(x, &rank));
  if (rank < 2) return;  // the kernel says what is wrong
  std::vector<int64_t> dims(rank);
  std::vector<const char*> symbols(rank);
  Check(g_ort.api->GetDimensions(x, dims.data(), rank));
  Check(g_ort.api->GetSymbolicDimensions(x, symbols.data(), rank));
  dims[rank - 1] = IntAttribute(context, "out_features", -1);
  symbols[rank - 1] = "";
  // ONNX Runtime would store an unknown dimension without a name as the value -1, which then spreads through Shape to
  // Reshape. Each gets a name of its own: a name in common would claim that two sizes are equal.
  static std::atomic<uint64_t> unnamed{0};
  std::vector<std::string> names(rank);
  for (size_t i = 0; i < rank; ++i) {
    if (dims[i] >= 0 || *symbols[i] != '\0') continue;
    names[i] = "flashllm_unknown_" + std::to_string(unnamed++);
    symbols[i] = names[i].c_str();
  }
  OrtTensorTypeAndShapeInfo* made = nullptr;
  Check(g_ort.api->CreateTensorTypeAndShapeInfo(&made));
  Owned<OrtTensorTypeAndShapeInfo> y(made);
  Check(g_ort.api->SetTensorElementType(y.get(), type));
  Check(g_ort.api->SetDimensions(y.get(), dims.data(), rank));
  Check(g_ort.api->SetSymbolicDimensions(y.get(), symbols.data(), rank));
  Check(g_ort.api->ShapeInferContext_SetOutputTypeShape(context, 0, y.get()));
}

/// ONNX Runtime asks the schema for a kernel where the provider has not claimed the node: the place to say why.
void RefuseKernel(const OrtKernelInfo* info) {
  const std::string node = NodeName(info);
  int64_t format = kFormatVersion;
  if (OrtStatus* status = g_ort.api->KernelInfoGetAttribute_int64(info, "format_version", &format))
    g_ort.api->ReleaseStatus(status);
  bool constant = true;
  for (size_t i = kBitmap; i <= kValues; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(g_ort.api->KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
    constant = constant && is_constant;
  }
  std::string reason;
  if (format > kFormatVersion) {
    reason = "its packed format has version " + std::to_string(format) + ", newer than this library's " +
             std::to_string(kFormatVersion) + ". Update onnxruntime-ep-flashllm";
  } else if (!constant) {
    reason =
        "its weight (inputs bitmap, row_offsets, values) is not made of constant initializers. Rewrite the model from "
        "its source";
  } else {
    reason = std::string("the session does not use ") + kEpName +
             ", or that failed to start. Append it to the session's providers";
  }
  throw Error(ORT_NOT_IMPLEMENTED, "flashllm cannot run SparseMatMul node '" + node + "': " + reason);
}

std::unique_ptr<SchemaOp> MakeOp(ONNXTensorElementDataType x_type, ONNXTensorElementDataType values_type) {
  auto op = std::make_unique<SchemaOp>();
  static_cast<OrtCustomOp&>(*op) = OrtCustomOp{};
  op->version = g_ort.version;
  op->x_type = x_type;
  op->values_type = values_type;
  op->GetName = [](const OrtCustomOp*) { return kSparseMatMul; };
  // The CPU provider's, and so never in the way of our kernel registry.
  op->GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op->GetInputType = InputType;
  op->GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputCount; };
  op->GetOutputType = [](const OrtCustomOp* self, size_t) { return static_cast<const SchemaOp*>(self)->x_type; };
  op->GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op->GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index >= kBias ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op->GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op->GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op->GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op->GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op->GetStartVersion = [](const OrtCustomOp*) { return kSinceVersion; };
  op->GetEndVersion = [](const OrtCustomOp*) { return kSinceVersion; };
  op->CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    *kernel = nullptr;
    return Guard([&] { RefuseKernel(info); });
  };
  op->KernelComputeV2 = [](void*, OrtKernelContext*) -> OrtStatus* {
    return g_ort.api->CreateStatus(ORT_NOT_IMPLEMENTED, "flashllm: a schema computes nothing");
  };
  op->KernelDestroy = [](void*) {};
  op->InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
    return Guard([&] { InferShape(context); });
  };
  return op;
}

}  // namespace

OpDomain::OpDomain() {
  OrtCustomOpDomain* domain = nullptr;
  Check(g_ort.api->CreateCustomOpDomain(kDomain, &domain));
  domain_.reset(domain);
  for (auto x_type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16}) {
    for (auto values_type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
                             ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}) {
      std::unique_ptr<SchemaOp> op = MakeOp(x_type, values_type);
      Check(g_ort.api->CustomOpDomain_Add(domain, op.get()));
      ops_.push_back(std::move(op));
    }
  }
}

OpDomain::~OpDomain() = default;

}  // namespace flashllm::ep
