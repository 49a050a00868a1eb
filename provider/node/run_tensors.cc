#include "provider/node/run_tensors.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace flashllm::node {
namespace {

/// The numbers of a call, one after the other; every read is checked.
class Numbers {
 public:
  explicit Numbers(const Napi::Value& array) {
    size_t bytes = 0;
    napi_typedarray_type type;
    at_ = static_cast<const double*>(BytesOf(array, &bytes, &type));
    if (type != napi_float64_array) throw Error(ORT_INVALID_ARGUMENT, "expected a Float64Array");
    end_ = at_ + bytes / sizeof(double);
  }

  /// Throws Error where there is none left or it is no integer from 0 to `last`.
  size_t Next(size_t last) {
    const double number = NextDim();
    if (!(number >= 0 && number <= static_cast<double>(last)))
      throw Error(ORT_INVALID_ARGUMENT, "a run was described by numbers that are none of a run's");
    return static_cast<size_t>(number);
  }
  /// The next dimension, -1 where it is none that an int64 holds.
  int64_t NextDim() {
    if (at_ == end_) throw Error(ORT_INVALID_ARGUMENT, "a run was described by too few numbers");
    const double number = *at_++;
    return number >= 0 && number <= 9007199254740991.0 && std::trunc(number) == number ? static_cast<int64_t>(number)
                                                                                       : -1;
  }

 private:
  const double *at_, *end_;
};

Kind ReadKind(Numbers* numbers, bool is_input, bool prepared) {
  const Kind kind = static_cast<Kind>(numbers->Next(static_cast<size_t>(Kind::kMirrored)));
  const bool is_new = kind == Kind::kNew || kind == Kind::kNewOnDevice;
  if ((is_new && (is_input || prepared)) || (kind == Kind::kMirrored && !prepared)) {
    throw Error(ORT_INVALID_ARGUMENT, "a run was described by a kind of tensor that it cannot have");
  }
  return kind;
}

JsTensor ReadData(Numbers* numbers, const Napi::Value& data, const std::string& name, bool is_input) {
  const auto type = static_cast<ONNXTensorElementDataType>(numbers->Next(INT16_MAX));
  std::vector<int64_t> dims(numbers->Next(INT16_MAX));
  for (int64_t& dim : dims) dim = numbers->NextDim();
  return FromJs(type, dims, data, name, is_input);
}

void ReadTensor(Numbers* numbers, const Napi::Value& given, const std::string& name, Kind kind, bool is_input,
                RunTensors* into) {
  JsTensor value, host;
  if (kind == Kind::kDevice) value = FromDevice(given, name);
  if (kind == Kind::kData) value = ReadData(numbers, given, name, is_input);
  if (kind == Kind::kMirrored) {
    if (!given.IsArray()) throw Error(ORT_INVALID_ARGUMENT, "tensor '" + name + "' is to be mirrored, but is no pair");
    const Napi::Array pair = given.As<Napi::Array>();
    host = ReadData(numbers, pair.Get(0u), name, is_input);
    value = FromDevice(pair.Get(1u), name);
  }
  into->names.push_back(name);
  into->kinds.push_back(kind);
  into->values.push_back(std::move(value));
  into->hosts.push_back(std::move(host));
}

std::vector<const char*> Pointers(const std::vector<std::string>& names) {
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());
  return pointers;
}

}  // namespace

RunSides ReadRun(const SessionState& session, const Napi::Value& layout, const Napi::Array& tensors, bool prepared) {
  Numbers numbers(layout);
  RunSides sides;
  const size_t inputs = numbers.Next(tensors.Length()), outputs = numbers.Next(tensors.Length() - inputs);
  for (size_t i = 0; i < inputs + outputs; ++i) {
    const bool is_input = i < inputs;
    const std::vector<ValueInfo>& known = is_input ? session.inputs() : session.outputs();
    if (known.empty()) throw Error(ORT_INVALID_ARGUMENT, "a run names a tensor that the session does not have");
    RunTensors* const side = is_input ? &sides.inputs : &sides.outputs;
    side->slots.push_back(numbers.Next(known.size() - 1));
    const std::string& name = known[side->slots.back()].name;
    const Kind kind = ReadKind(&numbers, is_input, prepared);
    ReadTensor(&numbers, tensors.Get(static_cast<uint32_t>(i)), name, kind, is_input, side);
  }
  return sides;
}

OrtStatus* Run(OrtSession* session, const OrtRunOptions* options, const RunSides& sides,
               std::vector<Owned<OrtValue>>* outputs) {
  const std::vector<const char*> input_names = Pointers(sides.inputs.names),
                                 output_names = Pointers(sides.outputs.names);
  std::vector<const OrtValue*> inputs;
  std::vector<OrtValue*> values;
  for (const JsTensor& value : sides.inputs.values) inputs.push_back(value.get());
  for (const JsTensor& value : sides.outputs.values) values.push_back(value.get());
  outputs->resize(values.size());
  OrtStatus* status = g_ort.api->Run(session, options, input_names.data(), inputs.data(), inputs.size(),
                                     output_names.data(), output_names.size(), values.data());
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] != sides.outputs.values[i].get()) (*outputs)[i].reset(values[i]);
  }
  return status;
}

bool UsesDevice(const RunTensors& tensors) {
  return std::any_of(tensors.kinds.begin(), tensors.kinds.end(), [](Kind kind) {
    return kind == Kind::kDevice || kind == Kind::kNewOnDevice || kind == Kind::kMirrored;
  });
}

Owned<OrtRunOptions> NewRunOptions() {
  OrtRunOptions* options = nullptr;
  Check(g_ort.api->CreateRunOptions(&options));
  return Owned<OrtRunOptions>(options);
}

Owned<OrtRunOptions> ReadRunOptions(const Napi::Object& from) {
  Owned<OrtRunOptions> owned = NewRunOptions();
  OrtRunOptions* const options = owned.get();
  const Napi::Value severity = from.Get("logSeverityLevel");
  const Napi::Value verbosity = from.Get("logVerbosityLevel");
  const Napi::Value tag = from.Get("tag");
  if (severity.IsNumber())
    Check(g_ort.api->RunOptionsSetRunLogSeverityLevel(options, severity.As<Napi::Number>().Int32Value()));
  if (verbosity.IsNumber())
    Check(g_ort.api->RunOptionsSetRunLogVerbosityLevel(options, verbosity.As<Napi::Number>().Int32Value()));
  if (tag.IsString()) Check(g_ort.api->RunOptionsSetRunTag(options, tag.As<Napi::String>().Utf8Value().c_str()));
  if (from.Get("terminate").ToBoolean()) Check(g_ort.api->RunOptionsSetTerminate(options));
  const Napi::Array config = from.Get("config").As<Napi::Array>();
  for (uint32_t i = 0; i < config.Length(); ++i) {
    const Napi::Array pair = config.Get(i).As<Napi::Array>();
    Check(g_ort.api->AddRunConfigEntry(options, pair.Get(0u).As<Napi::String>().Utf8Value().c_str(),
                                       pair.Get(1u).As<Napi::String>().Utf8Value().c_str()));
  }
  return owned;
}

}  // namespace flashllm::node
