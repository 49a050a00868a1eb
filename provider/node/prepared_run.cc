#include "provider/node/prepared_run.h"

#include <future>
#include <memory>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "provider/node/ort_library.h"
#include "provider/node/run_tensors.h"
#include "provider/node/run_threads.h"
#include "provider/node/session.h"

namespace flashllm::node {
namespace {

/// ONNX Runtime's version from which a recorded graph can be released.
constexpr uint32_t kReleasesGraphs = 27;

class PreparedRun {
 public:
  /// Throws Error where the session is released or a tensor is not what it is said to be.
  explicit PreparedRun(const Napi::CallbackInfo& info)
      : state_(StateOf(info[0])),
        tensors_(Napi::Persistent(info[2].As<Napi::Object>())),
        sides_(ReadRun(*state_, info[1], info[2].As<Napi::Array>(), true)),
        options_(NewRunOptions()),
        graph_id_(info[3].As<Napi::Number>().Int32Value()) {
    Check(g_ort.api->AddRunConfigEntry(options_.get(), "gpu_graph_id", std::to_string(graph_id_).c_str()));
    const SessionState::Use use(state_);
    if (UsesDevice(sides_.inputs) || UsesDevice(sides_.outputs)) Bind(use);
  }

  const std::shared_ptr<SessionState>& session() const { return state_; }
  int graph_id() const { return graph_id_; }

  /// Whether the caller may start it now: nobody else has, or has ended. End() must follow. `ended` tells when that
  /// start no longer uses the run.
  bool Begin(std::shared_future<void> ended) {
    if (std::exchange(busy_, true)) return false;
    ended_ = std::move(ended);
    return true;
  }
  void End() { busy_ = false; }
  /// Of the last start; not valid where there was none.
  const std::shared_future<void>& ended() const { return ended_; }

  /// Throws Error where a typed array no longer has the memory that it had: it was transferred, or its buffer resized.
  void RequireMemory() const {
    const auto tensors = tensors_.Value().As<Napi::Array>();
    uint32_t number = 0;
    for (const RunTensors* side : {&sides_.inputs, &sides_.outputs}) {
      for (size_t i = 0; i < side->names.size(); ++i, ++number) {
        const bool mirrored = side->kinds[i] == Kind::kMirrored;
        const JsTensor& tensor = mirrored ? side->hosts[i] : side->values[i];
        if (side->kinds[i] == Kind::kDevice || tensor.bytes == 0) continue;  // strings are copied: they have none
        const Napi::Value given = tensors[number];
        size_t length = 0;
        const void* const memory = BytesOf(mirrored ? given.As<Napi::Array>()[uint32_t{0}] : given, &length);
        if (memory == tensor.begin && length >= tensor.bytes) continue;
        throw Error(ORT_INVALID_ARGUMENT, "the typed array of tensor '" + side->names[i] +
                                              "' has lost its memory since the run was prepared (its buffer was " +
                                              "transferred or resized); prepare the run again");
      }
    }
  }

  void Execute(const SessionState::Use& use, uint32_t copies) {
    Copy(sides_.inputs, ~uint32_t{0}, true);
    if (binding_ != nullptr) {
      Check(g_ort.api->RunWithBinding(use.session(), options_.get(), binding_.get()));
    } else {
      std::vector<Owned<OrtValue>> none;  // every output has a place
      Check(Run(use.session(), options_.get(), sides_, &none));
    }
    Copy(sides_.outputs, copies, false);
  }

  void Cancel() {
    if (OrtStatus* status = g_ort.api->RunOptionsSetTerminate(options_.get())) g_ort.api->ReleaseStatus(status);
  }

 private:
  /// Binding names once spares looking them up in every run. It takes places on a GPU as they are; tensors of the
  /// host it might copy away at once.
  void Bind(const SessionState::Use& use) {
    session_ = use.shared();
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

  /// Copies the mirrored tensors of a side whose bit is set.
  static void Copy(const RunTensors& side, uint32_t which, bool to_device) {
    std::vector<const OrtValue*> from;
    std::vector<OrtValue*> to;
    size_t mirrored = 0;
    for (size_t i = 0; i < side.names.size(); ++i) {
      if (side.kinds[i] != Kind::kMirrored) continue;
      if (mirrored >= 32 || (which >> mirrored & 1) != 0) {
        from.push_back(to_device ? side.hosts[i].get() : side.values[i].get());
        to.push_back(to_device ? side.values[i].get() : side.hosts[i].get());
      }
      ++mirrored;
    }
    if (from.empty()) return;
    Check(g_ort.api->CopyTensors(GetRuntime().env, from.data(), to.data(), nullptr, from.size()));
  }

  const std::shared_ptr<SessionState> state_;
  const Napi::ObjectReference tensors_;  // keeps what the values borrow
  const RunSides sides_;
  const Owned<OrtRunOptions> options_;
  const int graph_id_;
  std::shared_ptr<OrtSession> session_;  // before the binding to it, hence ended after it
  Owned<OrtIoBinding> binding_;          // where tensors lie on a GPU
  // Touched on the JavaScript thread only.
  bool busy_ = false;
  std::shared_future<void> ended_;  // of the last start
};

using Handle = Napi::External<std::shared_ptr<PreparedRun>>;

class StartTask : public Task {
 public:
  /// Throws Error where the session is released, a tensor has lost its memory, or another start has not ended.
  StartTask(std::shared_ptr<PreparedRun> run, uint32_t copies)
      : held_(std::make_shared<Held>(run->session())), run_(std::move(run)), copies_(copies) {
    run_->RequireMemory();
    if (!run_->Begin(held_->ended.get_future().share()))
      throw Error(ORT_INVALID_ARGUMENT, "the prepared run is under way; wait for it to end");
  }
  /// Not before the promise is settled: until then the tensors are the run's.
  ~StartTask() override { run_->End(); }

  void Execute() override {
    const std::shared_lock<std::shared_mutex> graphs(held_->use.graphs());
    run_->Execute(held_->use, copies_);
  }
  std::shared_ptr<void> TakeHeld() override { return std::move(held_); }
  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }
  void Cancel() override { run_->Cancel(); }

 private:
  /// What releasing the session and disposing of the run wait for. Not the run itself: that ends on the JavaScript
  /// thread.
  struct Held {
    explicit Held(std::shared_ptr<SessionState> state) : use(std::move(state)) {}
    ~Held() { ended.set_value(); }
    const SessionState::Use use;
    std::promise<void> ended;
  };

  std::shared_ptr<Held> held_;
  const std::shared_ptr<PreparedRun> run_;
  const uint32_t copies_;
};

class DisposeTask : public Task {
 public:
  explicit DisposeTask(std::shared_ptr<PreparedRun> run) : run_(std::move(run)) {
    if (run_ == nullptr) return;
    start_ended_ = run_->ended();
    try {
      use_ = std::make_shared<SessionState::Use>(run_->session());
    } catch (const Error&) {  // the session is released, its graphs with it
    }
  }

  void Execute() override {
    if (start_ended_.valid()) start_ended_.wait();  // it was submitted before, so that it has a thread
    if (use_ != nullptr && run_->graph_id() >= 0 && g_ort.version >= kReleasesGraphs) {
      const std::unique_lock<std::shared_mutex> graphs(use_->graphs());
      Check(g_ort.api->SessionReleaseCapturedGraph(use_->session(), run_->graph_id()));
    }
  }
  std::shared_ptr<void> TakeHeld() override { return std::move(use_); }
  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }

 private:
  const std::shared_ptr<PreparedRun> run_;
  std::shared_future<void> start_ended_;
  std::shared_ptr<SessionState::Use> use_;
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
    return Submit(info.Env(), std::make_shared<StartTask>(run, info[1].As<Napi::Number>().Uint32Value()));
  });
}

Napi::Value DisposePreparedRun(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    return Submit(info.Env(), std::make_shared<DisposeTask>(std::exchange(*info[0].As<Handle>().Data(), nullptr)));
  });
}

}  // namespace flashllm::node
