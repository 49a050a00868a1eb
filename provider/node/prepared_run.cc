#include "provider/node/prepared_run.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "provider/node/device_memory.h"
#include "provider/node/mirrors.h"
#include "provider/node/ort_library.h"
#include "provider/node/run_tensors.h"
#include "provider/node/run_threads.h"
#include "provider/node/session.h"

namespace flashllm::node {
namespace {

/// ONNX Runtime's version from which a recorded graph can be released.
constexpr uint32_t kReleasesGraphs = 27;

Owned<OrtRunOptions> MakeRunOptions() {
  OrtRunOptions* made = nullptr;
  Check(g_ort.api->CreateRunOptions(&made));
  return Owned<OrtRunOptions>(made);
}

/// One start of a prepared run.
struct Start {
  uint64_t number;  // counted from 0
  uint32_t fed;     // mirrored inputs that go up
  uint32_t copies;  // mirrored outputs that come down
  size_t place() const { return number % Mirrors::kStarts; }
};

class PreparedRun : public SessionPart {
 public:
  /// Throws Error where the session is released or a tensor is not what it is said to be.
  explicit PreparedRun(const Napi::CallbackInfo& info)
      : state_(StateOf(info[0])),
        tensors_(Napi::Persistent(info[2].As<Napi::Object>())),
        sides_(ReadRun(*state_, info[1], info[2].As<Napi::Array>(), true)),
        inputs_(sides_.inputs),
        outputs_(sides_.outputs),
        options_(MakeRunOptions()),
        graph_id_(info[3].As<Napi::Number>().Int32Value()) {
    Check(g_ort.api->AddRunConfigEntry(options_.get(), "gpu_graph_id", std::to_string(graph_id_).c_str()));
    const SessionState::Use use(state_);
    if (UsesDevice(sides_.inputs) || UsesDevice(sides_.outputs)) Bind(use);
    if (graph_id_ >= 0) stream_ = use.graph_stream();
    state_->Add(this);
  }
  ~PreparedRun() override { state_->Remove(this); }
  PreparedRun(const PreparedRun&) = delete;

  const std::shared_ptr<SessionState>& session() const { return state_; }
  int graph_id() const { return graph_id_; }

  /// A new start, which End() must follow. Throws Error where as many are under way as can be. In a recorded run the
  /// arrays of the inputs have been read when this returns.
  Start Begin(uint32_t fed, uint32_t copies) {
    if (under_way_ >= (stream_ == nullptr ? 1 : Mirrors::kStarts)) {
      throw Error(ORT_INVALID_ARGUMENT, "the prepared run is under way; wait for it to end");
    }
    const Start start{started_, fed, copies};
    if (stream_ != nullptr) {
      OrtAllocator* const pinned = PinnedAllocator(stream_->gpu);
      inputs_.Reserve(pinned, start.place(), fed);
      outputs_.Reserve(pinned, start.place(), copies);
      inputs_.Fill(start.place(), fed);
    }
    ++started_;
    ++under_way_;
    return start;
  }
  void End() { --under_way_; }

  /// Computes, off the thread of JavaScript.
  void Execute(const SessionState::Use& use, const Start& start) {
    Turn turn(this, start.number);
    if (stream_ == nullptr) {
      inputs_.SendNow(start.fed);
      Compute(use);
      outputs_.FetchNow(start.copies);
      return;
    }
    // Its first run is ordinary, the second is recorded; after an error they may be again.
    std::shared_lock<std::shared_mutex> replaying(use.graphs(), std::defer_lock);
    std::unique_lock<std::shared_mutex> recording(use.graphs(), std::defer_lock);
    if (sound_ < kUntilRecorded) {
      recording.lock();
    } else {
      replaying.lock();
    }
    try {
      inputs_.Send(start.place(), start.fed, stream_->stream.get());
      Check(g_ort.api->RunWithBinding(use.session(), options_.get(), binding_.get()));
      outputs_.Fetch(start.place(), start.copies, stream_->stream.get());
      turn.Pass();
      Check(g_ort.api->SynchronizeBoundOutputs(binding_.get()));
    } catch (...) {
      sound_ = 0;
      // The pinned memory may still be in use.
      if (OrtStatus* status = g_ort.api->SynchronizeBoundOutputs(binding_.get())) g_ort.api->ReleaseStatus(status);
      throw;
    }
    ++sound_;
  }

  /// What Execute() has computed goes to the arrays, on the thread of JavaScript.
  void Deliver(const Start& start) {
    if (stream_ != nullptr) outputs_.Read(start.place(), start.copies);
  }

  void Cancel() {
    if (OrtStatus* status = g_ort.api->RunOptionsSetTerminate(options_.get())) g_ort.api->ReleaseStatus(status);
  }

  void EndWithSession() override { binding_.reset(); }

 private:
  static constexpr unsigned kUntilRecorded = 2;

  /// Starts compute in the order in which they began, whatever thread gets them.
  class Turn {
   public:
    Turn(PreparedRun* run, uint64_t number) : run_(run) {
      std::unique_lock<std::mutex> lock(run->mutex_);
      run->passed_.wait(lock, [&] { return run->turn_ == number; });
    }
    ~Turn() { Pass(); }
    /// Lets the next one begin.
    void Pass() {
      if (run_ == nullptr) return;
      {
        const std::lock_guard<std::mutex> lock(run_->mutex_);
        ++run_->turn_;
      }
      std::exchange(run_, nullptr)->passed_.notify_all();
    }

   private:
    PreparedRun* run_;
  };

  void Compute(const SessionState::Use& use) {
    if (binding_ != nullptr) {
      Check(g_ort.api->RunWithBinding(use.session(), options_.get(), binding_.get()));
      Check(g_ort.api->SynchronizeBoundOutputs(binding_.get()));
    } else {
      std::vector<Owned<OrtValue>> none;  // every output has a place
      Check(Run(use.session(), options_.get(), sides_, &none));
    }
  }

  /// Binding names once spares looking them up in every run. It takes places on a GPU as they are; tensors of the
  /// host it might copy away at once.
  void Bind(const SessionState::Use& use) {
    OrtIoBinding* made = nullptr;
    Check(g_ort.api->CreateIoBinding(use.session(), &made));
    binding_.reset(made);
    for (size_t i = 0; i < sides_.inputs.names.size(); ++i) {
      RequireDevice(sides_.inputs, i);
      Check(g_ort.api->BindInput(made, sides_.inputs.names[i].c_str(), sides_.inputs.values[i].get()));
    }
    for (size_t i = 0; i < sides_.outputs.names.size(); ++i) {
      RequireDevice(sides_.outputs, i);
      Check(g_ort.api->BindOutput(made, sides_.outputs.names[i].c_str(), sides_.outputs.values[i].get()));
    }
  }

  static void RequireDevice(const RunTensors& side, size_t i) {
    if (side.kinds[i] != Kind::kData) return;
    throw Error(ORT_INVALID_ARGUMENT, "tensor '" + side.names[i] + "' is in memory of the host, but others of this " +
                                          "prepared run are on a GPU; mirror it there");
  }

  const std::shared_ptr<SessionState> state_;
  const Napi::ObjectReference tensors_;  // keeps what the values borrow
  const RunSides sides_;
  Mirrors inputs_, outputs_;
  const Owned<OrtRunOptions> options_;
  const int graph_id_;
  const GraphStream* stream_ = nullptr;  // of the session, where the run is recorded
  Owned<OrtIoBinding> binding_;          // where tensors lie on a GPU
  uint64_t started_ = 0;                 // as the next, touched on the JavaScript thread only
  size_t under_way_ = 0;
  std::mutex mutex_;
  std::condition_variable passed_;
  uint64_t turn_ = 0;                // which start may compute
  std::atomic<unsigned> sound_ = 0;  // starts since the last error
};

using Handle = Napi::External<std::shared_ptr<PreparedRun>>;

class StartTask : public Task {
 public:
  /// Throws Error where the session is released, or too many starts have not ended.
  StartTask(std::shared_ptr<PreparedRun> run, uint32_t fed, uint32_t copies)
      : use_(std::in_place, run->session()), run_(std::move(run)), start_(run_->Begin(fed, copies)) {}
  /// Not before the promise is settled: until then the tensors are the run's.
  ~StartTask() override { run_->End(); }

  void Execute() override {
    run_->Execute(*use_, start_);
    use_.reset();
  }
  Napi::Value Result(Napi::Env env) override {
    run_->Deliver(start_);
    return env.Undefined();
  }
  void Cancel() override { run_->Cancel(); }

 private:
  std::optional<SessionState::Use> use_;
  const std::shared_ptr<PreparedRun> run_;
  const Start start_;
};

class DisposeTask : public Task {
 public:
  explicit DisposeTask(std::shared_ptr<PreparedRun> run) : run_(std::move(run)) {
    if (run_ == nullptr) return;
    try {
      use_.emplace(run_->session());
    } catch (const Error&) {  // the session is released, its graphs with it
    }
  }

  void Execute() override {
    if (use_ && run_->graph_id() >= 0 && g_ort.version >= kReleasesGraphs) {
      const std::unique_lock<std::shared_mutex> graphs(use_->graphs());
      Check(g_ort.api->SessionReleaseCapturedGraph(use_->session(), run_->graph_id()));
    }
    use_.reset();
  }
  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }

 private:
  const std::shared_ptr<PreparedRun> run_;
  std::optional<SessionState::Use> use_;
};

}  // namespace

Napi::Value PrepareRun(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    auto run = std::make_shared<PreparedRun>(info);
    const auto free = [](Napi::Env, std::shared_ptr<PreparedRun>* held) { delete held; };
    return Handle::New(info.Env(), new std::shared_ptr<PreparedRun>(std::move(run)), free);
  });
}

Napi::Value StartPreparedRun(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    const std::shared_ptr<PreparedRun> run = *info[0].As<Handle>().Data();
    if (run == nullptr) throw Error(ORT_INVALID_ARGUMENT, "the prepared run has been disposed of");
    return Submit(info.Env(), std::make_shared<StartTask>(run, info[1].As<Napi::Number>().Uint32Value(),
                                                          info[2].As<Napi::Number>().Uint32Value()));
  });
}

Napi::Value DisposePreparedRun(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    return Submit(info.Env(), std::make_shared<DisposeTask>(std::exchange(*info[0].As<Handle>().Data(), nullptr)));
  });
}

}  // namespace flashllm::node
