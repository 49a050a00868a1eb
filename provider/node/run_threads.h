// Work off the main thread that ends in a promise. Not libuv's pool: its four threads serve files and DNS, and a few
// long runs would hold those up.
#pragma once

#include <napi.h>

#include <memory>
#include <optional>
#include <string>

namespace flashllm::node {

/// One piece of work. Made and ended on the JavaScript thread, executed on another.
class Task {
 public:
  virtual ~Task() = default;
  /// Does the work; what it throws rejects the promise. Touches no JavaScript value.
  virtual void Execute() = 0;
  /// What Execute() leaves held, taken on its thread, whether it threw or not. It is let go once the promise is queued
  /// to be settled, so that promises of tasks that wait for it are settled later; where the environment ends, and none
  /// is settled, all the same.
  virtual std::shared_ptr<void> TakeHeld() { return nullptr; }
  /// The value of the promise, on the JavaScript thread. May throw Napi::Error.
  virtual Napi::Value Result(Napi::Env env) = 0;
  /// Asks Execute() to end soon. Called from any thread, possibly while Execute() runs, before or after it.
  virtual void Cancel() {}
};

/// Must be called once for each environment (main thread or worker) before Submit(). When the environment ends, its
/// work in flight is cancelled and waited for, since that work reads memory of JavaScript objects.
void InitRunThreads(Napi::Env env);

/// Executes `task` on another thread. Rejects with an Error whose `ortCode` is ONNX Runtime's code.
Napi::Promise Submit(Napi::Env env, std::shared_ptr<Task> task);

/// A JavaScript function that reads its arguments into a new task and returns the promise of its result. Bad arguments
/// reject the promise.
template <typename TaskType>
Napi::Value Start(const Napi::CallbackInfo& info) {
  try {
    return Submit(info.Env(), std::make_shared<TaskType>(info));
  } catch (const Napi::Error& error) {
    const Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(info.Env());
    deferred.Reject(error.Value());
    return deferred.Promise();
  }
}

/// A JavaScript Error of `message` with the property `ortCode`.
Napi::Error MakeError(Napi::Env env, int ort_code, const std::string& message);

/// The exception in flight as a JavaScript Error. Only within a catch block.
Napi::Error ErrorOfException(Napi::Env env);

/// Runs `body` on the JavaScript thread; what it throws becomes a JavaScript exception.
template <typename Body>
auto Boundary(Napi::Env env, Body&& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw ErrorOfException(env);
  }
}

}  // namespace flashllm::node
