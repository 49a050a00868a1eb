#include "provider/ep/sparse_matmul_node.h"

#include "provider/ep/op_schema.h"
#include "provider/ep/tensor_view.h"

namespace flashllm::ep {
namespace {

int64_t IntAttribute(const OrtKernelInfo* info, const std::string& where, const char* name) {
  int64_t value = 0;
  OrtStatus* status = g_ort.api->KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  g_ort.api->ReleaseStatus(status);
  throw Error(ORT_INVALID_GRAPH,
              "flashllm: " + where + " has no int attribute '" + name + "'. The model was made by a faulty tool");
}

/// KernelInfoGetAttributeArray_string came with it.
constexpr uint32_t kStringArraysSince = 25;

/// Whether a node has an attribute that is no string. ONNX Runtime's answer to who asks for a string is the same where
/// it has none.
bool HasOtherThanString(const OrtKernelInfo* info, const char* name) {
  const auto has = [](OrtStatus* status) {
    if (status == nullptr) return true;
    g_ort.api->ReleaseStatus(status);
    return false;
  };
  int64_t integer = 0;
  float number = 0;
  size_t count = 0;
  if (has(g_ort.api->KernelInfoGetAttribute_int64(info, name, &integer)) ||
      has(g_ort.api->KernelInfoGetAttribute_float(info, name, &number)) ||
      has(g_ort.api->KernelInfoGetAttributeArray_int64(info, name, nullptr, &count)) ||
      has(g_ort.api->KernelInfoGetAttributeArray_float(info, name, nullptr, &count))) {
    return true;
  }
  OrtAllocator* allocator = nullptr;
  Check(g_ort.api->GetAllocatorWithDefaultOptions(&allocator));
  return g_ort.version >= kStringArraysSince &&
         has(g_ort.api->KernelInfoGetAttributeArray_string(info, name, allocator, nullptr, &count));
}

bool ReadRelu(const OrtKernelInfo* info, const std::string& where) {
  size_t size = 0;
  OrtStatus* status = g_ort.api->KernelInfoGetAttribute_string(info, "activation", nullptr, &size);
  if (status != nullptr) {
    g_ort.api->ReleaseStatus(status);
    if (!HasOtherThanString(info, "activation")) return false;  // left out: the default
    throw Error(ORT_INVALID_GRAPH, "flashllm: the activation of " + where +
                                       " is not a string, expected none or relu. The model was made by a faulty tool");
  }
  std::string text(size, '\0');
  Check(g_ort.api->KernelInfoGetAttribute_string(info, "activation", text.data(), &size));
  text.resize(size > 0 ? size - 1 : 0);  // the terminating zero is counted
  if (text.empty() || text == "none") return false;
  if (text == "relu") return true;
  throw Error(ORT_INVALID_GRAPH, "flashllm: " + where + " has activation '" + text + "', expected none or relu");
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

void SetParts(const TensorView& bitmap, const TensorView& row_offsets, const TensorView& values,
              SparseMatMulNode* node) {
  const std::string& where = node->where;
  if (bitmap.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 || row_offsets.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: bitmap and row_offsets of " + where + " have element types " +
                                       std::to_string(bitmap.type) + " and " + std::to_string(row_offsets.type) +
                                       ", expected uint8 (2) and int32 (6)");
  }
  if (bitmap.shape.size() != 2 || row_offsets.shape.size() != 1 || values.shape.size() != 1) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: bitmap, row_offsets and values of " + where + " have shapes " +
                                       ShapeText(bitmap.shape) + ", " + ShapeText(row_offsets.shape) + " and " +
                                       ShapeText(values.shape) + ", expected ranks 2, 1 and 1");
  }
  PackedWeightClaim& claim = node->claim;
  claim.value_type = ValueTypeOf(values.type, where);
  claim.bitmap = static_cast<const uint8_t*>(bitmap.data);
  claim.bitmap_rows = bitmap.shape[0];
  claim.bitmap_cols = bitmap.shape[1];
  claim.row_offsets = static_cast<const int32_t*>(row_offsets.data);
  claim.row_offsets_length = row_offsets.shape[0];
  claim.values = values.data;
  claim.values_length = values.shape[0];
}

}  // namespace

SparseMatMulNode ReadSparseMatMulNode(const OrtKernelInfo* info) {
  SparseMatMulNode node;
  node.where = DescribeNode(info, kSparseMatMul);
  PackedWeightClaim& claim = node.claim;
  claim.format_version = IntAttribute(info, node.where, "format_version");
  claim.out_features = IntAttribute(info, node.where, "out_features");
  claim.in_features = IntAttribute(info, node.where, "in_features");
  claim.nnz = IntAttribute(info, node.where, "nnz");
  const int64_t checksum = IntAttribute(info, node.where, "checksum");
  if (checksum < 0 || checksum > 0xFFFFFFFF) {
    throw Error(ORT_INVALID_GRAPH,
                "flashllm: " + node.where + " has checksum " + std::to_string(checksum) + ", expected 0 to 4294967295");
  }
  claim.checksum = static_cast<uint32_t>(checksum);
  node.relu = ReadRelu(info, node.where);

  TensorView parts[3];
  for (size_t i = 0; i < 3; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(g_ort.api->KernelInfoGetConstantInput_tensor(info, kBitmap + i, &is_constant, &value));
    if (!is_constant || value == nullptr) {
      throw Error(ORT_FAIL, "flashllm: ONNX Runtime did not hand over the constant weight of " + node.where +
                                ". Please report this with the model's structure");
    }
    parts[i] = ViewOf(value);
  }
  SetParts(parts[0], parts[1], parts[2], &node);
  return node;
}

}  // namespace flashllm::ep
