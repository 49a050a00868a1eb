// runSession(handle, layout, tensors, options): {promise, cancel}
//   layout, tensors, options: run_tensors.h
// The promise gives one element for each output: {type, dims, data}, or {type, dims, device} where it stays on the GPU,
// or null where it was written to the preallocated tensor.
#include <algorithm>
#include <memory>
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
      : use_(std::make_shared<SessionState::Use>(StateOf(handle))),
        options_(ReadRunOptions(options)),
        tensors_(Napi::Persistent(tensors)),
        sides_(ReadRun(*StateOf(handle), layout, tensors, false)) {}

  void Execute() override {
    OrtStatus* status = nullptr;
    const std::shared_lock<std::shared_mutex> graphs(use_->graphs());
    const std::vector<Kind>& kinds = sides_.outputs.kinds;
    if (std::find(kinds.begin(), kinds.end(), Kind::kNewOnDevice) == kinds.end()) {
      status = Run(use_->session(), options_.get(), sides_, &results_);
    } else {
      session_ = use_->shared();
      status = RunBound();
    }
    Check(status);
  }

  std::shared_ptr<void> TakeHeld() override { return std::move(use_); }

  Napi::Value Result(Napi::Env env) override {
    const std::vector<JsTensor>&inputs = sides_.inputs.values, &outputs = sides_.outputs.values;
    Napi::Array array = Napi::Array::New(env, outputs.size());
    for (uint32_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].get() == nullptr) {
        const std::string& name = sides_.outputs.names[i];
        array.Set(i, StaysOnDevice(i) && IsOnDevice(results_[i].get())
                         ? ToJs(env, name, std::move(results_[i]), session_)
                         : ToJs(env, name, std::move(results_[i]), inputs));
        continue;
      }
      if (outputs[i].type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
        const uint32_t place = static_cast<uint32_t>(inputs.size() + i);
        CopyStrings(env, outputs[i].value.get(), tensors_.Value().Get(place).As<Napi::Array>());
      }
      array.Set(i, env.Null());
    }
    return array;
  }

  void Cancel() override {
    if (OrtStatus* status = g_ort.api->RunOptionsSetTerminate(options_.get())) g_ort.api->ReleaseStatus(status);
  }

 private:
  OrtStatus* RunBound();
  bool StaysOnDevice(size_t output) const { return sides_.outputs.kinds[output] == Kind::kNewOnDevice; }

  std::shared_ptr<SessionState::Use> use_;
  std::shared_ptr<OrtSession> session_;  // where outputs stay in its memory
  Owned<OrtRunOptions> options_;
  Napi::Reference<Napi::Array> tensors_;  // keeps what the values borrow
  const RunSides sides_;
  std::vector<Owned<OrtValue>> results_;
};

/// A run some of whose outputs stay where they were computed: ONNX Runtime takes places only of bound outputs.
OrtStatus* RunTask::RunBound() {
  OrtSession* session = use_->session();
  OrtIoBinding* made = nullptr;
  Check(g_ort.api->CreateIoBinding(session, &made));
  const Owned<OrtIoBinding> binding(made);
  const RunTensors &inputs = sides_.inputs, &outputs = sides_.outputs;
  for (size_t i = 0; i < inputs.names.size(); ++i) {
    Check(g_ort.api->BindInput(made, inputs.names[i].c_str(), inputs.values[i].get()));
  }
  std::vector<const OrtMemoryInfo*> places(use_->output_count());
  Check(g_ort.api->SessionGetMemoryInfoForOutputs(session, places.data(), places.size()));
  for (size_t i = 0; i < outputs.names.size(); ++i) {
    const char* name = outputs.names[i].c_str();
    const OrtMemoryInfo* computed = places[outputs.slots[i]];
    Check(outputs.values[i].get() != nullptr
              ? g_ort.api->BindOutput(made, name, outputs.values[i].get())
              : g_ort.api->BindOutputToDevice(made, name,
                                              StaysOnDevice(i) && computed != nullptr ? computed : CpuMemory()));
  }
  if (OrtStatus* status = g_ort.api->RunWithBinding(session, options_.get(), made)) return status;
  results_.resize(outputs.names.size());
  OrtValue** values = nullptr;
  size_t count = 0;
  OrtAllocator* allocator = DefaultAllocator();
  Check(g_ort.api->GetBoundOutputValues(made, allocator, &values, &count));
  for (size_t i = 0; i < count; ++i) {
    Owned<OrtValue> value(values[i]);
    if (outputs.values[i].get() == nullptr) results_[i] = std::move(value);
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
