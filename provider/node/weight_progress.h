// Progress from packing threads to JavaScript, and an AbortSignal the other way.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>

#include "ops/sparse-matmul/packer.h"

namespace flashllm::node {

/// Calls `onProgress(bytesDone)` and looks at `signal.aborted` on the JavaScript thread, whenever the packer reports.
class WeightProgress {
 public:
  /// Either may be undefined. Throws a TypeError on other types.
  WeightProgress(const Napi::Value& on_progress, const Napi::Value& signal);
  /// Must be destroyed or Close()d after the work, on any thread.
  ~WeightProgress();
  WeightProgress(const WeightProgress&) = delete;
  WeightProgress& operator=(const WeightProgress&) = delete;

  /// What the packer is handed. Refers to this object.
  PackControl Control();
  void Cancel() { state_->cancelled = true; }
  void Close();

 private:
  struct State {
    std::atomic<int64_t> bytes_done{0};
    std::atomic<bool> cancelled{false};
  };
  // Lives as long as the thread-safe function and ends with it, on the JavaScript thread.
  struct Context {
    std::shared_ptr<State> state;
    Napi::ObjectReference signal;
    bool reports = false;
  };
  static void OnReport(Napi::Env env, Napi::Function on_progress, Context* context, void*);
  using Channel = Napi::TypedThreadSafeFunction<Context, void, OnReport>;

  std::shared_ptr<State> state_ = std::make_shared<State>();
  Channel channel_;
  bool open_ = false;
};

}  // namespace flashllm::node
