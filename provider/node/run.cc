// runSession(handle, layout, tensors, options): {promise, cancel}
//   layout: Float64Array, all numbers of the call at once, since each call into JavaScript takes as long as reading
//   dozens
//           of them: the number of inputs, the number of outputs, then for each input and each output
//             slot      its place among the session's inputs or outputs
//             kind      Kind, below
//             type, rank, dims…   of kData only
//   tensors: for each the typed array or string[] (kData) or the handle (kDevice); anything for the others
//   options: {logSeverityLevel?, logVerbosityLevel?, tag?, terminate?, config: [key, value][]}
// The promise gives one element for each output: {type, dims, data}, or {type, dims, device} where it stays on the GPU,
// or null where it was written to the preallocated tensor.
#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "provider/node/run_threads.h"
#include "provider/node/session.h"
#include "provider/node/tensor.h"

namespace flashllm::node {
namespace {

Owned<OrtRunOptions> ReadRunOptions(const Napi::Object& from) {
  OrtRunOptions* options = nullptr;
  Check(g_ort.api->CreateRunOptions(&options));
  Owned<OrtRunOptions> owned(options);
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

/// Where a tensor is. As `Kind` of provider/backend.ts.
enum class Kind { kData, kDevice, kNew, kNewOnDevice };

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

class RunTask : public Task {
 public:
  RunTask(const Napi::Value& handle, const Napi::Value& layout, const Napi::Array& tensors, const Napi::Object& options)
      : use_(std::in_place, StateOf(handle)), options_(ReadRunOptions(options)), tensors_(Napi::Persistent(tensors)) {
    const std::shared_ptr<SessionState> state = StateOf(handle);
    Numbers numbers(layout);
    const size_t inputs = numbers.Next(tensors.Length()), outputs = numbers.Next(tensors.Length() - inputs);
    for (size_t i = 0; i < inputs + outputs; ++i) {
      const bool is_input = i < inputs;
      const std::vector<ValueInfo>& known = is_input ? state->inputs() : state->outputs();
      if (known.empty()) throw Error(ORT_INVALID_ARGUMENT, "a run names a tensor that the session does not have");
      const std::string& name = known[numbers.Next(known.size() - 1)].name;
      const Kind kind =
          static_cast<Kind>(numbers.Next(static_cast<size_t>(is_input ? Kind::kDevice : Kind::kNewOnDevice)));
      JsTensor tensor;
      if (kind == Kind::kDevice) {
        tensor = FromDevice(tensors.Get(static_cast<uint32_t>(i)), name);
      } else if (kind == Kind::kData) {
        const auto type = static_cast<ONNXTensorElementDataType>(numbers.Next(INT16_MAX));
        std::vector<int64_t> dims(numbers.Next(INT16_MAX));
        for (int64_t& dim : dims) dim = numbers.NextDim();
        tensor = FromJs(type, dims, tensors.Get(static_cast<uint32_t>(i)), name, is_input);
      }
      (is_input ? input_names_ : output_names_).push_back(name);
      (is_input ? inputs_ : outputs_).push_back(std::move(tensor));
      if (!is_input) on_device_.push_back(kind == Kind::kNewOnDevice);
    }
  }

  void Execute() override {
    results_.resize(outputs_.size());
    OrtStatus* status = nullptr;
    if (std::find(on_device_.begin(), on_device_.end(), true) == on_device_.end()) {
      status = Run();
    } else {
      session_ = use_->shared();
      status = RunBound();
    }
    use_.reset();  // here, not when the promise is settled: releasing the session waits for it
    Check(status);
  }

  Napi::Value Result(Napi::Env env) override {
    Napi::Array array = Napi::Array::New(env, outputs_.size());
    for (uint32_t i = 0; i < outputs_.size(); ++i) {
      if (outputs_[i].get() == nullptr) {
        array.Set(i, on_device_[i] && IsOnDevice(results_[i].get())
                         ? ToJs(env, output_names_[i], std::move(results_[i]), session_)
                         : ToJs(env, output_names_[i], std::move(results_[i]), inputs_));
        continue;
      }
      if (outputs_[i].type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
        const uint32_t place = static_cast<uint32_t>(inputs_.size() + i);
        CopyStrings(env, outputs_[i].value.get(), tensors_.Value().Get(place).As<Napi::Array>());
      }
      array.Set(i, env.Null());
    }
    return array;
  }

  void Cancel() override {
    if (OrtStatus* status = g_ort.api->RunOptionsSetTerminate(options_.get())) g_ort.api->ReleaseStatus(status);
  }

 private:
  OrtStatus* Run();
  OrtStatus* RunBound();

  std::optional<SessionState::Use> use_;
  std::shared_ptr<OrtSession> session_;  // where outputs stay in its memory
  Owned<OrtRunOptions> options_;
  Napi::Reference<Napi::Array> tensors_;  // keeps what the values borrow
  std::vector<std::string> input_names_, output_names_;
  std::vector<JsTensor> inputs_, outputs_;
  std::vector<bool> on_device_;  // outputs that stay on the GPU
  std::vector<Owned<OrtValue>> results_;
};

OrtStatus* RunTask::Run() {
  std::vector<const char*> input_names, output_names;
  std::vector<const OrtValue*> inputs;
  std::vector<OrtValue*> outputs;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    input_names.push_back(input_names_[i].c_str());
    inputs.push_back(inputs_[i].get());
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    output_names.push_back(output_names_[i].c_str());
    outputs.push_back(outputs_[i].get());
  }
  const std::vector<OrtValue*> given = outputs;
  OrtStatus* status = g_ort.api->Run(use_->session(), options_.get(), input_names.data(), inputs.data(), inputs.size(),
                                     output_names.data(), output_names.size(), outputs.data());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i] != given[i]) results_[i].reset(outputs[i]);
  }
  return status;
}

/// A run some of whose outputs stay where they were computed: ONNX Runtime takes places only of bound outputs.
OrtStatus* RunTask::RunBound() {
  OrtSession* session = use_->session();
  OrtIoBinding* made = nullptr;
  Check(g_ort.api->CreateIoBinding(session, &made));
  const Owned<OrtIoBinding> binding(made);
  for (size_t i = 0; i < inputs_.size(); ++i) {
    Check(g_ort.api->BindInput(made, input_names_[i].c_str(), inputs_[i].get()));
  }
  std::vector<const OrtMemoryInfo*> places(use_->output_count());
  Check(g_ort.api->SessionGetMemoryInfoForOutputs(session, places.data(), places.size()));
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const char* name = output_names_[i].c_str();
    const OrtMemoryInfo* computed = places[use_->output_index(output_names_[i])];
    Check(
        outputs_[i].get() != nullptr
            ? g_ort.api->BindOutput(made, name, outputs_[i].get())
            : g_ort.api->BindOutputToDevice(made, name, on_device_[i] && computed != nullptr ? computed : CpuMemory()));
  }
  Check(g_ort.api->SynchronizeBoundInputs(made));
  OrtStatus* status = g_ort.api->RunWithBinding(session, options_.get(), made);
  if (status == nullptr) status = g_ort.api->SynchronizeBoundOutputs(made);
  if (status != nullptr) return status;
  OrtValue** values = nullptr;
  size_t count = 0;
  OrtAllocator* allocator = DefaultAllocator();
  Check(g_ort.api->GetBoundOutputValues(made, allocator, &values, &count));
  for (size_t i = 0; i < count; ++i) {
    Owned<OrtValue> value(values[i]);
    if (outputs_[i].get() == nullptr) results_[i] = std::move(value);
  }
  if (values != nullptr) allocator->Free(allocator, values);
  return nullptr;
}

}  // namespace

Napi::Value RunSession(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Boundary(env, [&] {
    auto task = std::make_shared<RunTask>(info[0], info[1], info[2].As<Napi::Array>(), info[3].As<Napi::Object>());
    Napi::Object result = Napi::Object::New(env);
    // Weak: a signal that outlives the run must not keep its tensors.
    std::weak_ptr<Task> weak = task;
    result.Set("cancel", Napi::Function::New(env, [weak](const Napi::CallbackInfo&) {
                 if (const std::shared_ptr<Task> running = weak.lock()) running->Cancel();
               }));
    result.Set("promise", Submit(env, std::move(task)));
    return result;
  });
}

}  // namespace flashllm::node
