// A session: made, described and ended off the main thread.
#pragma once

#include <napi.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::node {

/// Name, kind, type and shape of an input or output of a model.
struct ValueInfo {
  std::string name;
  bool is_tensor = false;
  int type = 0;                      // ONNX element type
  std::vector<int64_t> dims;         // -1 where symbolic or unknown
  std::vector<std::string> symbols;  // as long as dims
};

/// An ONNX Runtime session that closes when the last run has ended.
class SessionState {
 public:
  explicit SessionState(Owned<OrtSession> session);

  /// Use of the session by one run, which ends as the task that has it is settled (Task::TakeHeld()): releasing the
  /// session waits for it. Throws Error where the session is disposed.
  class Use {
   public:
    explicit Use(std::shared_ptr<SessionState> state);
    ~Use();
    Use(const Use&) = delete;
    OrtSession* session() const { return state_->session_.get(); }
    /// For what must not outlive the session: memory that it allocated.
    std::shared_ptr<OrtSession> shared() const { return state_->session_; }
    /// Held shared by every run, and alone by who releases a recorded graph: ONNX Runtime does not keep them apart.
    std::shared_mutex& graphs() const { return state_->graphs_; }
    size_t output_count() const { return state_->outputs_.size(); }

   private:
    std::shared_ptr<SessionState> state_;
  };

  /// From now on no run begins. Idempotent.
  void Close();
  /// Waits for the runs that have begun and releases the session; it ends when no tensor on a GPU holds it any more.
  void Release();

  const std::vector<ValueInfo>& inputs() const { return inputs_; }
  const std::vector<ValueInfo>& outputs() const { return outputs_; }

 private:
  std::mutex mutex_;
  std::condition_variable idle_;
  size_t uses_ = 0;
  bool closed_ = false;
  std::shared_mutex graphs_;
  std::shared_ptr<OrtSession> session_;
  std::vector<ValueInfo> inputs_, outputs_;
};

/// The state behind a handle that JavaScript holds.
std::shared_ptr<SessionState> StateOf(const Napi::Value& handle);

/// createSession(path | Uint8Array, NativeSessionOptions): Promise<{handle, inputs, outputs}>
Napi::Value CreateSession(const Napi::CallbackInfo& info);
/// disposeSession(handle): Promise<void>, when the runs in flight have ended and the memory is free
Napi::Value DisposeSession(const Napi::CallbackInfo& info);
/// endProfiling(handle): the name of the file written
Napi::Value EndProfiling(const Napi::CallbackInfo& info);
/// runSession(…): see run.cc
Napi::Value RunSession(const Napi::CallbackInfo& info);

}  // namespace flashllm::node
