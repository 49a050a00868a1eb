#include "provider/node/weight_arguments.h"

#include <cmath>

namespace flashllm::node {
namespace {

[[noreturn]] void ThrowType(const Napi::Value& value, const std::string& what, const std::string& expected) {
  const bool printable = value.IsString() || value.IsNumber() || value.IsBoolean();
  const std::string found = printable             ? value.ToString().Utf8Value()
                            : value.IsUndefined() ? "undefined"
                            : value.IsNull()      ? "null"
                                                  : "a value of another type";
  throw Napi::TypeError::New(value.Env(), "Expected " + expected + " for " + what + " but received " + found);
}

double ReadNumber(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber()) ThrowType(value, name, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

WeightSegment ReadSegment(const Napi::Object& object) {
  WeightSegment segment;
  segment.path = ReadString(object, "path");
  segment.offset = ReadInteger(object, "offset", 0);
  segment.type = ReadFloatType(object, "type");
  segment.out_features = ReadInteger(object, "outFeatures", 1);
  segment.in_features = ReadInteger(object, "inFeatures", 1);
  const std::string layout = ReadString(object, "layout");
  if (layout != "out-in" && layout != "in-out") ThrowType(object.Get("layout"), "layout", "'out-in' or 'in-out'");
  segment.layout = layout == "out-in" ? Layout::kOutIn : Layout::kInOut;
  return segment;
}

PruneSpec ReadPrune(const Napi::Object& object) {
  PruneSpec prune;
  prune.enabled = true;
  if (ReadString(object, "method") != "magnitude") ThrowType(object.Get("method"), "prune.method", "'magnitude'");
  prune.sparsity = ReadNumber(object, "sparsity");
  if (!(prune.sparsity >= 0 && prune.sparsity <= 1)) ThrowType(object.Get("sparsity"), "prune.sparsity", "0 to 1");
  const std::string scope = ReadString(object, "scope");
  if (scope != "layer" && scope != "row") ThrowType(object.Get("scope"), "prune.scope", "'layer' or 'row'");
  prune.scope = scope == "layer" ? PruneScope::kLayer : PruneScope::kRow;
  return prune;
}

}  // namespace

Napi::Object ReadObject(const Napi::Value& value, const char* what) {
  if (!value.IsObject()) ThrowType(value, what, "an object");
  return value.As<Napi::Object>();
}

std::string ReadString(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsString()) ThrowType(value, name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

int64_t ReadInteger(const Napi::Object& object, const char* name, int64_t least) {
  constexpr double kMaxSafeInteger = 9007199254740991.0;
  const double number = ReadNumber(object, name);
  if (!(number >= static_cast<double>(least) && number <= kMaxSafeInteger) || number != std::floor(number)) {
    ThrowType(object.Get(name), name, "an integer of at least " + std::to_string(least));
  }
  return static_cast<int64_t>(number);
}

ValueType ReadFloatType(const Napi::Object& object, const char* name) {
  const std::string type = ReadString(object, name);
  if (type == "float32") return ValueType::kFloat32;
  if (type == "float16") return ValueType::kFloat16;
  if (type == "bfloat16") return ValueType::kBFloat16;
  ThrowType(object.Get(name), name, "'float32', 'float16' or 'bfloat16'");
}

std::vector<WeightSegment> ReadSegments(const Napi::Value& value) {
  if (!value.IsArray()) ThrowType(value, "segments", "an array");
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<WeightSegment> segments;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    segments.push_back(ReadSegment(ReadObject(array.Get(i), "a segment")));
  }
  return segments;
}

WeightOptions ReadWeightOptions(const Napi::Value& value) {
  WeightOptions options;
  const Napi::Object object = ReadObject(value, "options");
  if (!object.Get("scale").IsUndefined()) options.scale = static_cast<float>(ReadNumber(object, "scale"));
  if (!object.Get("prune").IsUndefined()) options.prune = ReadPrune(ReadObject(object.Get("prune"), "options.prune"));
  return options;
}

PackDestination ReadDestination(const Napi::Value& value) {
  const Napi::Object object = ReadObject(value, "destination");
  PackDestination destination;
  destination.path = ReadString(object, "path");
  destination.bitmap_offset = ReadInteger(object, "bitmapOffset", 0);
  destination.row_offsets_offset = ReadInteger(object, "rowOffsetsOffset", 0);
  destination.values_offset = ReadInteger(object, "valuesOffset", 0);
  return destination;
}

}  // namespace flashllm::node
