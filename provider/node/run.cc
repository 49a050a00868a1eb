// runSession(handle, layout, tensors, options): {promise, cancel}
//   layout, tensors, options: run_tensors.h
// The promise gives one element for each output: {type, dims, data}, or {type, dims, device} where it stays on the GPU,
// or null where it was written to the preallocated tensor.
#include <algorithm>
#include <optional>
#include <shared_mutex>
#include <utility>

#include "provider/node/run_tensors.h"
#include "provider/node/run_threads.h"
#include "provider/node/session.h"
#include "provider/node/tensor.h"

namespace flashllm::node {
namespace {

class RunTask : public Task {
 public:
  RunTask(const Napi::Value& handle, const Napi::Value& layout, const Napi::Array& tensors, const Napi::Object& options)
      : use_(std::in_place, StateOf(handle)), options_(ReadRunOptions(options)), tensors_(Napi::Persistent(tensors)) {
    RunSides sides = ReadRun(*StateOf(handle), layout, tensors, false);
    input_names_ = std::move(sides.inputs.names);
    inputs_ = std::move(sides.inputs.values);
    output_names_ = std::move(sides.outputs.names);
    outputs_ = std::move(sides.outputs.values);
    for (const Kind kind : sides.outputs.kinds) on_device_.push_back(kind == Kind::kNewOnDevice);
  }

  void Execute() override {
    results_.resize(outputs_.size());
    OrtStatus* status = nullptr;
    std::shared_lock<std::shared_mutex> graphs(use_->graphs());
    if (std::find(on_device_.begin(), on_device_.end(), true) == on_device_.end()) {
      status = Run();
    } else {
      session_ = use_->shared();
      status = RunBound();
    }
    graphs.unlock();
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
