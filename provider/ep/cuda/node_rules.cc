#include "provider/ep/cuda/node_rules.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "ops/decoder/cuda/tensor.h"
#include "provider/ep/claim.h"
#include "provider/ep/tensor_view.h"

namespace flashllm::ep {
namespace {

using Rule = std::string (*)(const OrtNode*);

struct ValueType {
  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::optional<std::vector<int64_t>> dims;  // where the rank is known; -1: a dimension that is not
};

ValueType TypeOf(const OrtValueInfo* value) {
  ValueType type;
  const OrtTensorTypeAndShapeInfo* const tensor = TensorInfoOf(value);
  if (tensor == nullptr) return type;
  Check(g_ort.api->GetTensorElementType(tensor, &type.element));
  if (!g_ort.api->TensorTypeAndShape_HasShape(tensor)) return type;
  size_t rank = 0;
  Check(g_ort.api->GetDimensionsCount(tensor, &rank));
  type.dims.emplace(rank);
  Check(g_ort.api->GetDimensions(tensor, type.dims->data(), rank));
  return type;
}

/// Empty where it is left out.
std::vector<int64_t> IntsAttribute(const OrtNode* node, const char* name) {
  const OrtOpAttr* attribute = nullptr;
  std::vector<int64_t> values;
  OrtStatus* status = g_ort.api->Node_GetAttributeByName(node, name, &attribute);
  if (status == nullptr && attribute != nullptr) {
    size_t bytes = 0;
    status = g_ort.api->ReadOpAttr(attribute, ORT_OP_ATTR_INTS, nullptr, 0, &bytes);
    if (status != nullptr && bytes > 0) {  // as many are needed
      g_ort.api->ReleaseStatus(status);
      values.resize(bytes / sizeof(int64_t));
      status = g_ort.api->ReadOpAttr(attribute, ORT_OP_ATTR_INTS, values.data(), bytes, &bytes);
      if (status != nullptr) values.clear();
    }
  }
  if (status != nullptr) g_ort.api->ReleaseStatus(status);
  return values;
}

/// The numbers of a constant int64 initializer.
std::optional<std::vector<int64_t>> ConstantInts(const OrtValueInfo* value) {
  bool constant = false;
  const OrtValue* initializer = nullptr;
  Check(g_ort.api->ValueInfo_IsConstantInitializer(value, &constant));
  if (constant) Check(g_ort.api->ValueInfo_GetInitializerValue(value, &initializer));
  if (initializer == nullptr) return std::nullopt;
  const TensorView view = ViewOf(initializer);
  if (view.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) return std::nullopt;
  size_t bytes = 0;
  Check(g_ort.api->GetTensorSizeInBytes(initializer, &bytes));
  std::vector<int64_t> values(bytes / sizeof(int64_t));
  if (!values.empty()) std::memcpy(values.data(), view.data, bytes);
  return values;
}

std::vector<const OrtValueInfo*> OutputsOf(const OrtNode* node) {
  size_t count = 0;
  Check(g_ort.api->Node_GetNumOutputs(node, &count));
  std::vector<const OrtValueInfo*> outputs(count);
  Check(g_ort.api->Node_GetOutputs(node, outputs.data(), count));
  return outputs;
}

/// Whether a node has an input or output.
bool Has(const std::vector<const OrtValueInfo*>& values, size_t index) {
  return index < values.size() && values[index] != nullptr;
}

const OrtNode* ProducerOf(const OrtValueInfo* value) {
  const OrtNode* node = nullptr;
  size_t output = 0;
  OrtStatus* status = g_ort.api->ValueInfo_GetValueProducer(value, &node, &output);
  if (status == nullptr) return node;
  g_ort.api->ReleaseStatus(status);
  return nullptr;
}

/// Whether a value depends on nothing but shapes and constants: ONNX Runtime's CPU provider computes it on the host.
/// Looks at `budget` values at the most, for graphs that were made to be slow to look at.
bool IsOfShapes(const OrtValueInfo* value, int* budget) {
  if (value == nullptr) return true;
  bool constant = false;
  Check(g_ort.api->ValueInfo_IsConstantInitializer(value, &constant));
  if (constant) return true;
  const OrtNode* node = --*budget > 0 ? ProducerOf(value) : nullptr;
  if (node == nullptr) return false;
  const std::string op = OpName(node);
  if (op == "Shape" || op == "Size") return true;
  if (op == "Range") return false;  // the GPU's, of as many numbers as there are positions
  for (const OrtValueInfo* input : InputsOf(node)) {
    if (!IsOfShapes(input, budget)) return false;
  }
  return true;
}

bool IsOfShapes(const OrtValueInfo* value) {
  int budget = 64;
  return IsOfShapes(value, &budget);
}

std::string ShapeArithmetic(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  for (const OrtValueInfo* input : inputs) {
    const ONNXTensorElementDataType type = TypeOf(input).element;
    const bool integer = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 ||
                         type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    if (!integer || !IsOfShapes(input)) return "";
  }
  return inputs.empty() ? "" : "it computes with shapes only, which is quicker on the CPU";
}

std::string GatherRule(const OrtNode* node) {
  return IntAttribute(node, "axis", 0) == 0 ? "" : "the GPU kernel gathers along the first axis only";
}

std::string LastAxisRule(const OrtNode* node, int64_t standard) {
  const int64_t axis = IntAttribute(node, "axis", standard);
  if (axis == -1) return "";
  const ValueType type = TypeOf(InputsOf(node)[0]);
  const bool last = type.dims && axis == static_cast<int64_t>(type.dims->size()) - 1;
  return last ? "" : "the GPU kernel works along the last axis only";
}

constexpr const char* kNoMean = "the GPU kernel has no output of means or deviations";

std::string LayerNormRule(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> outputs = OutputsOf(node);
  return Has(outputs, 1) || Has(outputs, 2) ? kNoMean : LastAxisRule(node, -1);
}

/// Whether the skip may have as many of an axis as x when a run knows them (-1: the model does not say). One that is 1
/// where x's is not is there to be broadcast.
bool MayBeEqual(int64_t x, int64_t skip) { return x == skip || skip < 0 || (x < 0 && skip != 1); }

std::string SkipLayerNormRule(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node), outputs = OutputsOf(node);
  if (Has(outputs, 1) || Has(outputs, 2)) return kNoMean;
  const ValueType x = TypeOf(inputs[0]), skip = TypeOf(inputs[1]);
  const bool same = !x.dims || !skip.dims ||
                    std::equal(x.dims->begin(), x.dims->end(), skip.dims->begin(), skip.dims->end(), MayBeEqual);
  return same ? "" : "the GPU kernel does not broadcast the skip";
}

std::string GemmRule(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  if (IntAttribute(node, "transA", 0) != 0 || IntAttribute(node, "transB", 0) != 1) {
    return "the GPU kernel computes transA = 0 and transB = 1 only";
  }
  if (FloatAttribute(node, "alpha", 1.0f) != 1.0f) return "the GPU kernel computes alpha = 1 only";
  if (!Has(inputs, 2)) return "";
  if (FloatAttribute(node, "beta", 1.0f) != 1.0f) return "the GPU kernel computes beta = 1 only";
  const ValueType bias = TypeOf(inputs[2]), weight = TypeOf(inputs[1]);
  const bool row = bias.dims && weight.dims && bias.dims->size() == 1 && weight.dims->size() == 2 &&
                   (*bias.dims)[0] == (*weight.dims)[0] && (*bias.dims)[0] >= 0;
  return row ? "" : "the GPU kernel takes C of shape [M] only";
}

std::string MatMulRule(const OrtNode* node) {
  for (const OrtValueInfo* input : InputsOf(node)) {
    const ValueType type = TypeOf(input);
    if (!type.dims || type.dims->size() < 2) return "the GPU kernel multiplies matrices, not vectors";
  }
  return "";
}

std::string AttentionRule(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  const int64_t heads = IntAttribute(node, "num_heads", 0);
  if (heads < 1 || IntAttribute(node, "kv_num_heads", 0) != heads)
    return "the GPU kernel has as many KV heads as heads";
  if (IntAttribute(node, "do_rotary", 0) != 0) return "the GPU kernel has no rotary embedding";
  if (IntAttribute(node, "local_window_size", -1) != -1) return "the GPU kernel has no local window";
  if (FloatAttribute(node, "softcap", 0.0f) != 0.0f) return "the GPU kernel has no soft cap";
  if (IntAttribute(node, "smooth_softmax", -1) > 0) return "the GPU kernel has no smooth softmax";
  if (IntAttribute(node, "qk_output", 0) != 0) return "the GPU kernel does not output scores";
  for (size_t i = 7; i < inputs.size(); ++i) {
    if (i != 10 && Has(inputs, i)) return "the GPU kernel does not take input " + std::to_string(i);
  }
  for (size_t past : {3, 4}) {  // newer schemas let a cache have a type of its own
    if (Has(inputs, past) && TypeOf(inputs[past]).element != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)
      return "the GPU kernel takes a cache of float16 only";
  }
  const ValueType query = TypeOf(inputs[0]);
  const int64_t parts = Has(inputs, 1) ? 1 : 3;
  if (!query.dims || query.dims->size() != 3 || (*query.dims)[2] < 0) return "the width of its query is not known";
  const int64_t columns = (*query.dims)[2], head = heads > columns / parts ? 0 : columns / (heads * parts);
  if (head < 1 || head * heads * parts != columns || head % 8 != 0 || head > 128) {
    return "the GPU kernel takes heads of a multiple of 8 elements, at most 128";
  }
  return "";
}

/// Whether axes are known to be neighbours, or none.
bool AreNeighbours(std::vector<int64_t> axes, const ValueType& of) {
  for (int64_t& axis : axes) {
    if (axis < 0 && of.dims) axis += static_cast<int64_t>(of.dims->size());
  }
  std::sort(axes.begin(), axes.end());
  if (!of.dims && !axes.empty() && axes.front() < 0 && axes.back() >= 0) return false;
  const auto apart = [](int64_t a, int64_t b) { return a != b && a != b - 1; };
  return std::adjacent_find(axes.begin(), axes.end(), apart) == axes.end();
}

std::string ReduceRule(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  if (IntAttribute(node, "noop_with_empty_axes", 0) != 0) return "the GPU kernel reduces all axes where none is given";
  const auto axes = Has(inputs, 1) ? ConstantInts(inputs[1]) : IntsAttribute(node, "axes");
  if (!axes) return "its axes are not constant";
  return AreNeighbours(*axes, TypeOf(inputs[0])) ? ShapeArithmetic(node)
                                                 : "the GPU kernel reduces neighbouring axes only";
}

std::string ArgMaxRule(const OrtNode* node) {
  if (IntAttribute(node, "select_last_index", 0) != 0) return "the GPU kernel selects the first index";
  return LastAxisRule(node, 0);
}

std::string SoftmaxRule(const OrtNode* node) { return LastAxisRule(node, -1); }

std::string ConcatRule(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  if (inputs.empty() || TypeOf(inputs[0]).element != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) return "";
  if (inputs.size() > kHostConcatInputs) return "it has more than " + std::to_string(kHostConcatInputs) + " inputs";
  for (const OrtValueInfo* input : inputs) {
    const ValueType type = TypeOf(input);
    if (!type.dims || type.dims->size() != 1) return "the GPU provider joins integers of one axis only";
  }
  return "";
}

/// Of Min and Max, which may have any number of operands.
std::string ExtremeRule(const OrtNode* node) {
  return InputsOf(node).size() == 2 ? "" : "the GPU kernel takes two operands only";
}

std::string PowRule(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  return TypeOf(inputs[0]).element == TypeOf(inputs[1]).element ? "" : "the GPU kernel takes powers of one type only";
}

std::string HostCastRule(const OrtNode* node) {
  const ValueType type = TypeOf(InputsOf(node)[0]);
  if (type.element != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ||
      IntAttribute(node, "to", 0) != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
    return ShapeArithmetic(node);
  }
  return "";
}

const std::map<std::string, Rule>& Rules() {
  static const std::map<std::string, Rule> rules = {
      {"com.microsoft::GroupQueryAttention", AttentionRule},
      {"com.microsoft::SkipLayerNormalization", SkipLayerNormRule},
      {"Gather", GatherRule},
      {"LayerNormalization", LayerNormRule},
      {"Gemm", GemmRule},
      {"MatMul", MatMulRule},
      {"Softmax", SoftmaxRule},
      {"ReduceMax", ReduceRule},
      {"ReduceMin", ReduceRule},
      {"ReduceSum", ReduceRule},
      {"ReduceMean", ReduceRule},
      {"Min", ExtremeRule},
      {"Max", ExtremeRule},
      {"Pow", PowRule},
      {"ArgMax", ArgMaxRule},
      {"Concat", ConcatRule},
      {"Cast", HostCastRule},
      {"Add", ShapeArithmetic},
      {"Mul", ShapeArithmetic},
      {"Div", ShapeArithmetic},
      {"Where", ShapeArithmetic},
      {"Transpose", ShapeArithmetic},
      {"Slice", ShapeArithmetic},
      {"Split", ShapeArithmetic},
      {"CumSum", ShapeArithmetic},
      {"Equal", ShapeArithmetic},
      {"Less", ShapeArithmetic},
      {"LessOrEqual", ShapeArithmetic},
      {"Greater", ShapeArithmetic},
      {"GreaterOrEqual", ShapeArithmetic},
      {"And", ShapeArithmetic},
      {"Or", ShapeArithmetic},
      {"Xor", ShapeArithmetic},
      {"Not", ShapeArithmetic},
      {"Neg", ShapeArithmetic},
      {"Abs", ShapeArithmetic},
  };
  return rules;
}

}  // namespace

std::string ReasonAgainstNode(const OrtNode* node) {
  if (IsSparseMatMul(node)) return SparseMatMulReason(node);  // no other provider computes it
  for (const auto& values : {InputsOf(node), OutputsOf(node)}) {
    for (const OrtValueInfo* value : values) {
      const ValueType type = TypeOf(value);
      if (type.dims && type.dims->size() > static_cast<size_t>(cuda::kMaxRank))
        return "the GPU kernels take tensors of up to " + std::to_string(cuda::kMaxRank) + " axes";
    }
  }
  const auto rule = Rules().find(OpName(node));
  return rule == Rules().end() ? "" : rule->second(node);
}

}  // namespace flashllm::ep
