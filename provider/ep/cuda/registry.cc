#include "provider/ep/cuda/registry.h"

#include <string>
#include <vector>

#include "provider/ep/cuda/kernels/kernels.h"
#include "provider/ep/cuda/node_rules.h"
#include "provider/ep/op_schema.h"
#include "provider/ep/options.h"

namespace flashllm::ep {
namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kBFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kBool = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;

using Types = std::vector<ONNXTensorElementDataType>;
const Types kFloats = {kFloat, kHalf};
const Types kNumbers = {kFloat, kHalf, kInt32, kInt64};
const Types kAll = {kFloat, kHalf, kBFloat, kInt32, kInt64, kBool};

/// One kernel. What is not said: every type of the schema, device memory.
struct Entry {
  const char* domain;
  const char* op;
  int first, last;  // versions of the op (of its schema, not opsets)
  OrtKernelCreateFunc create;
  std::vector<std::pair<const char*, Types>> types = {};
  std::vector<size_t> host_inputs = {};
  std::vector<size_t> host_outputs = {};
  bool view = false;  // output 0 may be input 0's memory
};

constexpr int kNewest = 25;  // of ops whose later versions only added types that the kernels do not take

std::vector<Entry> Table() {
  return {
      {kDomain, kSparseMatMul, 1, 1, SparseMatMulOnGpu(), {}, {kBitmap, kRowOffsets, kValues}},
      {"com.microsoft", "GroupQueryAttention", 1, 1, GroupQueryAttentionOnGpu(), {{"T", {kHalf}}}, {6}},
      {"com.microsoft", "SkipLayerNormalization", 1, 1, SkipLayerNormalizationOnGpu(), {{"T", kFloats}}},
      {"com.microsoft", "Gelu", 1, 1, GeluOnGpu(), {{"T", kFloats}}},
      {"", "LayerNormalization", 17, 17, LayerNormalizationOnGpu(), {{"T", kFloats}}},
      {"", "Gemm", 7, 13, GemmOnGpu(), {{"T", {kHalf}}}},
      {"", "MatMul", 1, 13, MatMulOnGpu(), {{"T", kFloats}}},
      {"", "Gather", 1, 13, GatherOnGpu(), {{"T", {kFloat, kHalf, kBFloat}}, {"Tind", {kInt32, kInt64}}}},
      {"", "Add", 7, 14, AddOnGpu(), {{"T", kNumbers}}},
      {"", "Sub", 7, 14, SubOnGpu(), {{"T", kFloats}}},
      {"", "Sub", 7, 14, SubOnHost(), {{"T", {kInt32}}}, {0, 1}, {0}},
      {"", "Mul", 7, 14, MulOnGpu(), {{"T", kNumbers}}},
      {"", "Div", 7, 14, DivOnGpu(), {{"T", kNumbers}}},
      {"", "Min", 8, 13, MinOnGpu(), {{"T", kFloats}}},
      {"", "Max", 8, 13, MaxOnGpu(), {{"T", kFloats}}},
      {"", "Pow", 12, 15, PowOnGpu(), {{"T", kFloats}, {"T1", kFloats}}},
      {"", "Equal", 7, 19, EqualOnGpu(), {{"T", {kFloat, kHalf, kInt32, kInt64, kBool}}}},
      {"", "Less", 9, 13, LessOnGpu(), {{"T", kNumbers}}},
      {"", "LessOrEqual", 12, 16, LessOrEqualOnGpu(), {{"T", kNumbers}}},
      {"", "Greater", 9, 13, GreaterOnGpu(), {{"T", kNumbers}}},
      {"", "GreaterOrEqual", 12, 16, GreaterOrEqualOnGpu(), {{"T", kNumbers}}},
      {"", "And", 7, 7, AndOnGpu()},
      {"", "Or", 7, 7, OrOnGpu()},
      {"", "Xor", 7, 7, XorOnGpu()},
      {"", "Not", 1, 1, NotOnGpu()},
      {"", "Neg", 6, 13, NegOnGpu(), {{"T", kNumbers}}},
      {"", "Abs", 6, 13, AbsOnGpu(), {{"T", kNumbers}}},
      {"", "Sqrt", 6, 13, SqrtOnGpu(), {{"T", kFloats}}},
      {"", "Exp", 6, 13, ExpOnGpu(), {{"T", kFloats}}},
      {"", "Tanh", 6, 13, TanhOnGpu(), {{"T", kFloats}}},
      {"", "Relu", 6, 14, ReluOnGpu(), {{"T", kFloats}}},
      {"",
       "Cast",
       6,
       kNewest,
       CastOnGpu(),
       {{"T1", {kFloat, kHalf, kInt32, kBool}}, {"T2", {kFloat, kHalf, kInt32, kInt64, kBool}}}},
      {"", "Cast", 6, kNewest, CastOnGpu(), {{"T1", {kInt64}}, {"T2", {kFloat, kHalf, kInt64, kBool}}}},
      {"", "Cast", 6, kNewest, CastOnHost(), {{"T1", {kInt64}}, {"T2", {kInt32}}}, {0}, {0}},
      {"", "Where", 9, 16, WhereOnGpu(), {{"T", kNumbers}}},
      {"", "Softmax", 13, 13, SoftmaxOnGpu(), {{"T", kFloats}}},
      {"", "ReduceMax", 11, 20, ReduceMaxOnGpu(), {{"T", kNumbers}}, {1}},
      {"", "ReduceMin", 11, 20, ReduceMinOnGpu(), {{"T", kNumbers}}, {1}},
      {"", "ReduceSum", 11, 13, ReduceSumOnGpu(), {{"T", kNumbers}}, {1}},
      {"", "ReduceMean", 11, 18, ReduceMeanOnGpu(), {{"T", kFloats}}, {1}},
      {"", "CumSum", 11, 14, CumSumOnGpu(), {{"T", kNumbers}, {"T2", {kInt32, kInt64}}}, {1}},
      {"", "ArgMax", 11, 13, ArgMaxOnGpu(), {{"T", kFloats}}},
      {"", "Range", 11, 11, RangeOnGpu(), {{"T", {kFloat, kInt32, kInt64}}}, {0, 1, 2}},
      {"", "Expand", 8, 13, ExpandOnGpu(), {{"T", kAll}}, {1}},
      {"", "Transpose", 1, kNewest, TransposeOnGpu(), {{"T", kAll}}},
      {"", "Slice", 10, 13, SliceOnGpu(), {{"T", kAll}, {"Tind", {kInt32, kInt64}}}, {1, 2, 3, 4}},
      {"", "Split", 2, 18, SplitOnGpu(), {{"T", kAll}}, {1}},
      {"", "Concat", 4, 13, ConcatOnGpu(), {{"T", {kFloat, kHalf, kBFloat, kInt32, kBool}}}},
      {"", "Concat", 4, 13, ConcatOnHost(), {{"T", {kInt64}}}, {}, {0}},
      {"", "Reshape", 5, kNewest, ReshapeOnGpu(), {{"T", {kFloat, kHalf, kBFloat}}}, {1}, {}, true},
      {"", "Flatten", 1, kNewest, FlattenOnGpu(), {{"T", {kFloat, kHalf, kBFloat}}}, {}, {}, true},
      {"", "Identity", 1, kNewest, IdentityOnGpu(), {{"T", {kFloat, kHalf, kBFloat}}}, {}, {}, true},
      {"", "Unsqueeze", 1, 11, UnsqueezeOnGpu(), {{"T", {kFloat, kHalf, kBFloat, kBool}}}, {}, {}, true},
      {"", "Unsqueeze", 13, kNewest, UnsqueezeOnGpu(), {{"T", {kFloat, kHalf, kBFloat, kBool}}}, {1}, {}, true},
      {"", "Squeeze", 1, 11, SqueezeOnGpu(), {{"T", {kFloat, kHalf, kBFloat, kBool}}}, {}, {}, true},
      {"", "Squeeze", 13, kNewest, SqueezeOnGpu(), {{"T", {kFloat, kHalf, kBFloat, kBool}}}, {1}, {}, true},
      {"", "Squeeze", 13, kNewest, SqueezeOnGpu(), {{"T", {kInt32}}}, {0, 1}, {0}, true},
      {"", "Shape", 1, kNewest, ShapeOnHost(), {}, {}, {0}},
      {"", "MemcpyFromHost", 1, 1, MemcpyFromHostOnGpu(), {}, {0}},
      {"", "MemcpyToHost", 1, 1, MemcpyToHostOnGpu(), {}, {}, {0}},
  };
}

void AddTypes(OrtKernelDefBuilder* builder, const char* parameter, const Types& types) {
  std::vector<const OrtDataType*> data_types;
  for (ONNXTensorElementDataType type : types) {
    const OrtDataType* data_type = nullptr;
    Check(g_ort.ep->GetTensorDataType(type, &data_type));
    data_types.push_back(data_type);
  }
  Check(g_ort.ep->KernelDefBuilder_AddTypeConstraint(builder, parameter, data_types.data(), data_types.size()));
}

void AddKernel(OrtKernelRegistry* registry, const Entry& entry) {
  OrtKernelDefBuilder* builder = nullptr;
  Check(g_ort.ep->CreateKernelDefBuilder(&builder));
  const Owned<OrtKernelDefBuilder> owned_builder(builder);
  Check(g_ort.ep->KernelDefBuilder_SetOperatorType(builder, entry.op));
  Check(g_ort.ep->KernelDefBuilder_SetDomain(builder, entry.domain));
  Check(g_ort.ep->KernelDefBuilder_SetSinceVersion(builder, entry.first, entry.last));
  Check(g_ort.ep->KernelDefBuilder_SetExecutionProvider(builder, kEpName));
  for (const auto& [parameter, types] : entry.types) AddTypes(builder, parameter, types);
  for (size_t index : entry.host_inputs) {
    Check(g_ort.ep->KernelDefBuilder_SetInputMemType(builder, index, OrtMemTypeCPUInput));
  }
  if (entry.create == ConcatOnHost()) {
    for (size_t i = 0; i < kHostConcatInputs; ++i) {
      Check(g_ort.ep->KernelDefBuilder_SetInputMemType(builder, i, OrtMemTypeCPUInput));
    }
  }
  for (size_t index : entry.host_outputs) {
    Check(g_ort.ep->KernelDefBuilder_SetOutputMemType(builder, index, OrtMemTypeCPUOutput));
  }
  if (entry.view) {
    const int first = 0;
    Check(g_ort.ep->KernelDefBuilder_AddInputOutputAliases(builder, &first, &first, 1));
  }
  OrtKernelDef* definition = nullptr;
  Check(g_ort.ep->KernelDefBuilder_Build(builder, &definition));
  const Owned<OrtKernelDef> owned_definition(definition);
  Check(g_ort.ep->KernelRegistry_AddKernel(registry, definition, entry.create, nullptr));
}

}  // namespace

Owned<OrtKernelRegistry> MakeCudaKernelRegistry() {
  OrtKernelRegistry* registry = nullptr;
  Check(g_ort.ep->CreateKernelRegistry(&registry));
  Owned<OrtKernelRegistry> owned(registry);
  for (const Entry& entry : Table()) AddKernel(registry, entry);
  return owned;
}

}  // namespace flashllm::ep
