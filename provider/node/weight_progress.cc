#include "provider/node/weight_progress.h"

namespace flashllm::node {

WeightProgress::WeightProgress(const Napi::Value& on_progress, const Napi::Value& signal) {
  const Napi::Env env = on_progress.Env();
  if (!on_progress.IsUndefined() && !on_progress.IsFunction()) {
    throw Napi::TypeError::New(env, "Expected a function for onProgress");
  }
  if (!signal.IsUndefined() && !signal.IsObject())
    throw Napi::TypeError::New(env, "Expected an AbortSignal for signal");
  if (on_progress.IsUndefined() && signal.IsUndefined()) return;

  auto context = std::make_unique<Context>();
  context->state = state_;
  context->reports = on_progress.IsFunction();
  if (signal.IsObject()) {
    context->signal = Napi::Persistent(signal.As<Napi::Object>());
    state_->cancelled = signal.As<Napi::Object>().Get("aborted").ToBoolean().Value();
  }
  const Napi::Function function = on_progress.IsFunction() ? on_progress.As<Napi::Function>()
                                                           : Napi::Function::New(env, [](const Napi::CallbackInfo&) {});
  Context* raw = context.get();
  channel_ = Channel::New(
      env, function, "flashllm weights", 0, 1, raw, [](Napi::Env, void*, Context* ended) { delete ended; },
      static_cast<void*>(nullptr));
  context.release();
  open_ = true;
}

WeightProgress::~WeightProgress() { Close(); }

void WeightProgress::Close() {
  if (open_) channel_.Release();
  open_ = false;
}

PackControl WeightProgress::Control() {
  PackControl control;
  control.cancelled = &state_->cancelled;
  control.progress = [this](int64_t bytes_done) {
    state_->bytes_done = bytes_done;
    if (!open_) return;
    const napi_status status = channel_.NonBlockingCall();
    if (status != napi_closing) return;
    // The environment ends. The function counts us as gone, and nobody waits for the result any more.
    open_ = false;
    state_->cancelled = true;
  };
  return control;
}

void WeightProgress::OnReport(Napi::Env env, Napi::Function on_progress, Context* context, void*) {
  if (env == nullptr || context == nullptr) return;
  if (!context->signal.IsEmpty() && context->signal.Get("aborted").ToBoolean().Value()) {
    context->state->cancelled = true;
    return;
  }
  if (context->reports) {
    on_progress.Call({Napi::Number::New(env, static_cast<double>(context->state->bytes_done.load()))});
  }
}

}  // namespace flashllm::node
