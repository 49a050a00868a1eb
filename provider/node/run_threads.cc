#include "provider/node/run_threads.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>

#include "provider/ort_api.h"

namespace flashllm::node {
namespace {

/// Threads of the process, started when there is work and ended after some idle time. More than a few runs at once gain
/// nothing, since each spreads over ONNX Runtime's own pool.
class Pool {
 public:
  void Start(std::function<void()> job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(std::move(job));
      if (idle_ >= jobs_.size() || threads_ >= limit_ || AddThread()) {
        wake_.notify_one();
        return;
      }
      job = std::move(jobs_.back());
      jobs_.pop_back();
    }
    job();  // the system has no thread left: late is better than never
  }

 private:
  /// Returns whether there is a thread now that will take the job.
  bool AddThread() {
    try {
      std::thread([this] { Work(); }).detach();
      ++threads_;
    } catch (const std::system_error&) {
    }
    return threads_ > 0;
  }

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      ++idle_;
      wake_.wait_for(lock, std::chrono::seconds(10), [this] { return !jobs_.empty(); });
      --idle_;
      if (jobs_.empty()) break;
      std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      job = nullptr;
      lock.lock();
    }
    --threads_;
  }

  const size_t limit_ = std::max<size_t>(8, 2 * std::thread::hardware_concurrency());
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  size_t threads_ = 0;
  size_t idle_ = 0;
};

Pool& ThePool() {
  static Pool* pool = new Pool();  // never freed: detached threads use it until the process ends
  return *pool;
}

/// A task on its way, with its promise and how it failed.
struct Flight {
  std::shared_ptr<Task> task;
  Napi::Promise::Deferred deferred;
  int ort_code = 0;
  std::optional<std::string> failure;
};

/// What one environment has in flight. Shared with the jobs, which may end after the environment has begun to.
struct InFlight {
  std::mutex mutex;
  std::condition_variable ended;
  std::set<Flight*> flights;  // from Submit() to Land()
  size_t running = 0;         // those of them whose Execute() has not returned
  napi_threadsafe_function land = nullptr;
  bool closing = false;
};

struct EnvironmentData {
  std::shared_ptr<InFlight> in_flight = std::make_shared<InFlight>();
  size_t pending = 0;  // promises not settled; touched on the JavaScript thread only
};

EnvironmentData* DataOf(Napi::Env env) { return env.GetInstanceData<EnvironmentData>(); }

void ExecuteFlight(Flight* flight) {
  try {
    flight->task->Execute();
  } catch (const Error& error) {
    flight->ort_code = error.code();
    flight->failure = error.what();
  } catch (const std::exception& error) {
    flight->ort_code = ORT_RUNTIME_EXCEPTION;
    flight->failure = error.what();
  } catch (...) {
    flight->ort_code = ORT_RUNTIME_EXCEPTION;
    flight->failure = "an exception of unknown type";
  }
}

void Settle(Napi::Env env, const Flight& flight) {
  std::optional<Napi::Error> failure;
  try {
    if (!flight.failure) {
      flight.deferred.Resolve(flight.task->Result(env));
      return;
    }
    failure = MakeError(env, flight.ort_code, *flight.failure);
  } catch (...) {
    failure = ErrorOfException(env);
  }
  flight.deferred.Reject(failure->Value());
}

/// Settles the promise of a task that has ended, on the JavaScript thread.
void Land(napi_env raw_env, napi_value, void*, void* data) {
  if (raw_env == nullptr) return;  // the environment has ended, and CloseEnvironment() has freed `data`
  std::unique_ptr<Flight> flight(static_cast<Flight*>(data));
  Napi::Env env(raw_env);
  Napi::HandleScope scope(env);
  EnvironmentData* environment = DataOf(env);
  {
    std::lock_guard<std::mutex> lock(environment->in_flight->mutex);
    environment->in_flight->flights.erase(flight.get());
  }
  if (--environment->pending == 0) napi_unref_threadsafe_function(env, environment->in_flight->land);
  try {
    Settle(env, *flight);
  } catch (...) {
    // An environment that is being terminated runs no JavaScript any more: nobody waits for the promise. No exception
    // may reach Node's own frames.
  }
}

/// The environment ends: nothing may read its buffers any more.
void CloseEnvironment(void* data) {
  const std::shared_ptr<InFlight> in_flight = static_cast<EnvironmentData*>(data)->in_flight;
  std::unique_lock<std::mutex> lock(in_flight->mutex);
  in_flight->closing = true;
  for (Flight* flight : in_flight->flights) flight->task->Cancel();
  in_flight->ended.wait(lock, [&] { return in_flight->running == 0; });
  for (Flight* flight : in_flight->flights) delete flight;  // their promises will never be seen
  in_flight->flights.clear();
}

}  // namespace

void InitRunThreads(Napi::Env env) {
  auto* environment = new EnvironmentData();
  env.SetInstanceData<EnvironmentData>(environment);
  const Napi::String name = Napi::String::New(env, "flashllm");
  napi_threadsafe_function land = nullptr;
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, Land, &land) !=
      napi_ok) {
    throw Napi::Error::New(env, "flashllm: a thread-safe function could not be made");
  }
  napi_unref_threadsafe_function(env, land);
  environment->in_flight->land = land;
  // Added after the function's own hook, hence run before it.
  napi_add_env_cleanup_hook(env, CloseEnvironment, environment);
}

Napi::Promise Submit(Napi::Env env, std::shared_ptr<Task> task) {
  EnvironmentData* environment = DataOf(env);
  auto flight = std::make_unique<Flight>(Flight{std::move(task), Napi::Promise::Deferred::New(env), 0, std::nullopt});
  const Napi::Promise promise = flight->deferred.Promise();
  const std::shared_ptr<InFlight> in_flight = environment->in_flight;
  {
    std::lock_guard<std::mutex> lock(in_flight->mutex);
    in_flight->flights.insert(flight.get());
    ++in_flight->running;
  }
  if (environment->pending++ == 0) napi_ref_threadsafe_function(env, in_flight->land);
  ThePool().Start([in_flight, raw = flight.release()] {
    ExecuteFlight(raw);
    const std::shared_ptr<void> held = raw->task->TakeHeld();  // goes after the lock
    std::lock_guard<std::mutex> lock(in_flight->mutex);
    --in_flight->running;
    // Under the lock: once nothing runs, the environment may close and take the function along.
    if (!in_flight->closing) napi_call_threadsafe_function(in_flight->land, raw, napi_tsfn_nonblocking);
    in_flight->ended.notify_all();
  });
  return promise;
}

Napi::Error MakeError(Napi::Env env, int ort_code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("ortCode", Napi::Number::New(env, ort_code));
  return error;
}

Napi::Error ErrorOfException(Napi::Env env) {
  try {
    throw;
  } catch (const Napi::Error& error) {
    return error;
  } catch (const Error& error) {
    return MakeError(env, error.code(), error.what());
  } catch (const std::exception& error) {
    return MakeError(env, ORT_RUNTIME_EXCEPTION, error.what());
  } catch (...) {
    return MakeError(env, ORT_RUNTIME_EXCEPTION, "an exception of unknown type");
  }
}

}  // namespace flashllm::node
