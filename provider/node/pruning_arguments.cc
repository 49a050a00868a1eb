#include "provider/node/pruning_arguments.h"

#include <string>

#include "provider/node/weight_arguments.h"

namespace flashllm::node {
namespace {

constexpr std::array<const char*, 4> kStageNames = {"attention-in", "attention-out", "feed-forward-in",
                                                    "feed-forward-out"};
constexpr std::array<const char*, 4> kMethodNames = {"magnitude", "wanda", "sparsegpt", "admm"};
constexpr std::array<const char*, 2> kScopeNames = {"layer", "row"};
constexpr std::array<const char*, 2> kActivationNames = {"relu", "gelu"};

/// The index of a string among names.
template <size_t N>
int ReadChoice(const Napi::Value& value, const char* what, const std::array<const char*, N>& names) {
  std::string expected;
  for (size_t i = 0; i < N; ++i) {
    if (value.IsString() && value.As<Napi::String>().Utf8Value() == names[i]) return static_cast<int>(i);
    expected += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  throw Napi::TypeError::New(value.Env(), std::string("Expected one of ") + expected + " for " + what);
}

double ReadFraction(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(number >= 0 && number < 1)) {
    throw Napi::TypeError::New(object.Env(), std::string("Expected a number from 0 to below 1 for ") + name);
  }
  return number;
}

bool ReadFlag(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsBoolean()) throw Napi::TypeError::New(object.Env(), std::string("Expected true or false for ") + name);
  return value.As<Napi::Boolean>().Value();
}

}  // namespace

const std::array<const char*, pruning::kLinears> kLinearNames = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"};
const std::array<const char*, pruning::kNorms> kNormNames = {"self_attn_layer_norm", "final_layer_norm"};

pruning::OptShape ReadOptShape(const Napi::Object& object) {
  pruning::OptShape shape;
  shape.hidden = ReadInteger(object, "hiddenSize", 1);
  shape.ffn = ReadInteger(object, "ffnSize", 1);
  shape.heads = ReadInteger(object, "heads", 1);
  shape.pre_norm = ReadFlag(object, "preNorm");
  shape.gelu = ReadChoice(object.Get("activation"), "activation", kActivationNames) == 1;
  shape.sequences = ReadInteger(object, "sequences", 1);
  shape.length = ReadInteger(object, "length", 1);
  if (shape.hidden % shape.heads != 0)
    throw Napi::TypeError::New(object.Env(), "Expected hiddenSize to be a multiple of heads");
  return shape;
}

pruning::TensorPlace ReadTensorPlace(const Napi::Value& value, const char* what) {
  const Napi::Object object = ReadObject(value, what);
  pruning::TensorPlace place;
  place.path = ReadString(object, "path");
  place.offset = ReadInteger(object, "offset", 0);
  place.type = ReadFloatType(object, "type");
  place.elements = ReadInteger(object, "elements", 1);
  return place;
}

pruning::PruneOptions ReadPruneOptions(const Napi::Value& value) {
  const Napi::Object object = ReadObject(value, "options");
  pruning::PruneOptions options;
  options.method = static_cast<pruning::Method>(ReadChoice(object.Get("method"), "method", kMethodNames));
  options.sparsity = ReadFraction(object, "sparsity");
  options.scope = static_cast<PruneScope>(ReadChoice(object.Get("scope"), "scope", kScopeNames));
  options.correct_bias = ReadFlag(object, "correctBias");
  options.damping = ReadFraction(object, "damping");
  options.block_columns = ReadInteger(object, "blockColumns", 1);
  options.iterations = static_cast<int>(ReadInteger(object, "iterations", 1));
  options.refinement = static_cast<int>(ReadInteger(object, "refinement", 0));
  return options;
}

DeviceChoice ReadDevice(const Napi::Value& value) {
  DeviceChoice choice;
  if (value.IsString() && value.As<Napi::String>().Utf8Value() == "cpu") return choice;
  const Napi::Object object = ReadObject(value, "device, or 'cpu'");
  choice.cuda = true;
  choice.ordinal = static_cast<int>(ReadInteger(object, "cuda", 0));
  return choice;
}

pruning::Stage ReadStage(const Napi::Value& value) {
  return static_cast<pruning::Stage>(ReadChoice(value, "stage", kStageNames));
}

pruning::LinearId ReadLinearId(const Napi::Value& value) {
  return static_cast<pruning::LinearId>(ReadChoice(value, "linear", kLinearNames));
}

}  // namespace flashllm::node
