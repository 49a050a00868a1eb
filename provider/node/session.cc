#include "provider/node/session.h"

#include <atomic>
#include <mutex>

#include "provider/node/ort_library.h"
#include "provider/node/run_threads.h"
#include "provider/node/session_options.h"
#include "provider/node/tensor.h"

namespace flashllm::node {
namespace {

/// A string that ONNX Runtime allocated, freed.
std::string TakeString(char* text) {
  std::string copy = text;
  OrtAllocator* allocator = DefaultAllocator();
  allocator->Free(allocator, text);
  return copy;
}

ValueInfo DescribeValue(char* name, OrtTypeInfo* raw_type) {
  ValueInfo out;
  const Owned<OrtTypeInfo> type(raw_type);
  out.name = TakeString(name);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  Check(g_ort.api->CastTypeInfoToTensorInfo(raw_type, &tensor));
  if (tensor == nullptr) return out;
  out.is_tensor = true;
  ONNXTensorElementDataType element;
  Check(g_ort.api->GetTensorElementType(tensor, &element));
  out.type = element;
  size_t rank = 0;
  Check(g_ort.api->GetDimensionsCount(tensor, &rank));
  out.dims.resize(rank);
  Check(g_ort.api->GetDimensions(tensor, out.dims.data(), rank));
  std::vector<const char*> symbols(rank);
  Check(g_ort.api->GetSymbolicDimensions(tensor, symbols.data(), rank));
  for (const char* symbol : symbols) out.symbols.emplace_back(symbol == nullptr ? "" : symbol);
  return out;
}

std::vector<ValueInfo> DescribeInputs(const OrtSession* session) {
  size_t count = 0;
  Check(g_ort.api->SessionGetInputCount(session, &count));
  std::vector<ValueInfo> values;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    OrtTypeInfo* type = nullptr;
    Check(g_ort.api->SessionGetInputTypeInfo(session, i, &type));
    Check(g_ort.api->SessionGetInputName(session, i, DefaultAllocator(), &name));
    values.push_back(DescribeValue(name, type));
  }
  return values;
}

std::vector<ValueInfo> DescribeOutputs(const OrtSession* session) {
  size_t count = 0;
  Check(g_ort.api->SessionGetOutputCount(session, &count));
  std::vector<ValueInfo> values;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    OrtTypeInfo* type = nullptr;
    Check(g_ort.api->SessionGetOutputTypeInfo(session, i, &type));
    Check(g_ort.api->SessionGetOutputName(session, i, DefaultAllocator(), &name));
    values.push_back(DescribeValue(name, type));
  }
  return values;
}

Napi::Array ValuesToJs(Napi::Env env, const std::vector<ValueInfo>& values) {
  Napi::Array array = Napi::Array::New(env, values.size());
  for (uint32_t i = 0; i < values.size(); ++i) {
    Napi::Object object = Napi::Object::New(env);
    object.Set("name", values[i].name);
    object.Set("isTensor", values[i].is_tensor);
    object.Set("type", values[i].type);
    Napi::Array shape = Napi::Array::New(env, values[i].dims.size());
    for (uint32_t d = 0; d < values[i].dims.size(); ++d) {
      const int64_t dim = values[i].dims[d];
      shape.Set(d, dim < 0 ? Napi::Value(Napi::String::New(env, values[i].symbols[d]))
                           : Napi::Number::New(env, static_cast<double>(dim)));
    }
    object.Set("shape", shape);
    array.Set(i, object);
  }
  return array;
}

using Handle = Napi::External<std::shared_ptr<SessionState>>;

class CreateTask : public Task {
 public:
  CreateTask(const Napi::Value& model, const Napi::Object& options) : options_(ReadSessionOptions(options)) {
    if (model.IsString()) {
      path_ = model.As<Napi::String>().Utf8Value();
    } else {
      model_ = Napi::Persistent(model.As<Napi::Object>());
      bytes_ = BytesOf(model, &length_);
    }
  }

  void Execute() override {
    OrtEnv* env = GetRuntime().env;
    OrtSession* session = nullptr;
    // ONNX Runtime adds the domain of our op to a table of the process with the first session. It looks and adds
    // without a lock: of two first sessions at once, one may fail.
    static std::mutex first;
    static std::atomic<bool> added{false};
    std::unique_lock<std::mutex> alone(first, std::defer_lock);
    if (!added) alone.lock();
    if (bytes_ == nullptr) {
      Check(g_ort.api->CreateSession(env, path_.c_str(), options_.options.get(), &session));
    } else {
      Check(g_ort.api->CreateSessionFromArray(env, bytes_, length_, options_.options.get(), &session));
    }
    added = true;
    state_ = std::make_shared<SessionState>(Owned<OrtSession>(session));
  }

  void Cancel() override {
    if (OrtStatus* status = g_ort.api->SessionOptionsSetLoadCancellationFlag(options_.options.get(), true)) {
      g_ort.api->ReleaseStatus(status);
    }
  }

  Napi::Value Result(Napi::Env env) override {
    Napi::Object result = Napi::Object::New(env);
    const auto free = [](Napi::Env, std::shared_ptr<SessionState>* state) { delete state; };
    result.Set("handle", Handle::New(env, new std::shared_ptr<SessionState>(state_), free));
    result.Set("inputs", ValuesToJs(env, state_->inputs()));
    result.Set("outputs", ValuesToJs(env, state_->outputs()));
    return result;
  }

 private:
  SessionOptions options_;
  std::string path_;
  Napi::ObjectReference model_;
  const void* bytes_ = nullptr;
  size_t length_ = 0;
  std::shared_ptr<SessionState> state_;
};

class DisposeTask : public Task {
 public:
  explicit DisposeTask(std::shared_ptr<SessionState> state) : state_(std::move(state)) {}
  void Execute() override { state_->Release(); }
  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }

 private:
  std::shared_ptr<SessionState> state_;
};

}  // namespace

SessionState::SessionState(Owned<OrtSession> session)
    : session_(std::move(session)),  // with its releaser
      inputs_(DescribeInputs(session_.get())),
      outputs_(DescribeOutputs(session_.get())) {}

SessionState::Use::Use(std::shared_ptr<SessionState> state) : state_(std::move(state)) {
  std::lock_guard<std::mutex> lock(state_->mutex_);
  if (state_->closed_) {
    state_ = nullptr;
    throw Error(ORT_FAIL, "the session has been released; create another one");
  }
  ++state_->uses_;
}

SessionState::Use::~Use() {
  std::lock_guard<std::mutex> lock(state_->mutex_);
  --state_->uses_;
  state_->idle_.notify_all();
}

void SessionState::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
}

void SessionState::Release() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return uses_ == 0; });
  session_.reset();
}

std::shared_ptr<SessionState> StateOf(const Napi::Value& handle) { return *handle.As<Handle>().Data(); }

Napi::Value CreateSession(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    return Submit(info.Env(), std::make_shared<CreateTask>(info[0], info[1].As<Napi::Object>()));
  });
}

Napi::Value DisposeSession(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    std::shared_ptr<SessionState> state = StateOf(info[0]);
    state->Close();
    return Submit(info.Env(), std::make_shared<DisposeTask>(std::move(state)));
  });
}

Napi::Value EndProfiling(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    const SessionState::Use use(StateOf(info[0]));
    char* name = nullptr;
    Check(g_ort.api->SessionEndProfiling(use.session(), DefaultAllocator(), &name));
    return Napi::String::New(info.Env(), TakeString(name));
  });
}

}  // namespace flashllm::node
