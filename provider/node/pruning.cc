#include "provider/node/pruning.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ops/pruning/device.h"
#include "ops/pruning/opt_layer.h"
#include "ops/pruning/tensor_file.h"
#include "provider/node/pruning_arguments.h"
#include "provider/node/run_threads.h"
#include "provider/node/weight_arguments.h"
#include "provider/node/weight_progress.h"

namespace flashllm::node {
namespace {

std::unique_ptr<pruning::Device> MakeDevice(const DeviceChoice& choice, pruning::Workers& workers) {
  return choice.cuda ? pruning::MakeCudaDevice(workers, choice.ordinal) : pruning::MakeCpuDevice(workers);
}

/// What a handle holds: the device, and the layer that is open.
struct Pruner {
  Pruner(const pruning::OptShape& opt_shape, int threads, const DeviceChoice& choice)
      : shape(opt_shape), workers(threads), device(MakeDevice(choice, workers)) {}

  pruning::OptLayer& Layer() {
    if (layer == nullptr) throw pruning::PruningError("no layer is open");
    return *layer;
  }

  std::mutex mutex;  // one task at a time
  const pruning::OptShape shape;
  pruning::Workers workers;
  const std::unique_ptr<pruning::Device> device;
  std::unique_ptr<pruning::OptLayer> layer;
};

using PrunerHandle = std::shared_ptr<Pruner>;

PrunerHandle ReadHandle(const Napi::Value& value) {
  if (!value.IsExternal()) throw Napi::TypeError::New(value.Env(), "Expected a pruner");
  return *value.As<Napi::External<PrunerHandle>>().Data();
}

/// Work with a handle. Progress is told in millionths.
class PrunerTask : public Task {
 public:
  PrunerTask(PrunerHandle pruner, const Napi::Value& on_progress, const Napi::Value& signal)
      : pruner_(std::move(pruner)), progress_(on_progress, signal), control_(progress_.Control()) {}

  void Execute() final {
    const std::lock_guard<std::mutex> lock(pruner_->mutex);
    SetCancelled(control_.cancelled);
    try {
      Work(*pruner_);
    } catch (...) {
      SetCancelled(nullptr);
      progress_.Close();
      throw;
    }
    SetCancelled(nullptr);
    progress_.Close();
  }
  void Cancel() override { progress_.Cancel(); }
  Napi::Value Result(Napi::Env env) override { return env.Undefined(); }

 protected:
  virtual void Work(Pruner& pruner) = 0;
  pruning::Progress Report() {
    return [this](double fraction) { control_.progress(static_cast<int64_t>(fraction * 1e6)); };
  }

 private:
  void SetCancelled(const std::atomic<bool>* cancelled) {
    pruner_->workers.set_cancelled(cancelled);
    pruner_->device->set_cancelled(cancelled);
  }

  PrunerHandle pruner_;
  WeightProgress progress_;
  PackControl control_;
};

std::optional<pruning::TensorPlace> ReadOptionalPlace(const Napi::Object& object, const char* name) {
  if (object.Get(name).IsUndefined()) return std::nullopt;
  return ReadTensorPlace(object.Get(name), name);
}

pruning::Floats ReadIfThere(const std::optional<pruning::TensorPlace>& place) {
  return place ? pruning::ReadTensor(*place) : pruning::Floats();
}

/// embedSequences(pruner, {ids, tokenTable, embedSize, positionTable, projectIn?, output})
class EmbedTask final : public PrunerTask {
 public:
  explicit EmbedTask(const Napi::CallbackInfo& info)
      : PrunerTask(ReadHandle(info[0]), info.Env().Undefined(), info.Env().Undefined()) {
    const Napi::Object object = ReadObject(info[1], "embedding");
    if (!object.Get("ids").IsTypedArray() ||
        object.Get("ids").As<Napi::TypedArray>().TypedArrayType() != napi_int32_array) {
      throw Napi::TypeError::New(info.Env(), "Expected an Int32Array for ids");
    }
    const Napi::Int32Array ids = object.Get("ids").As<Napi::Int32Array>();
    ids_.assign(ids.Data(), ids.Data() + ids.ElementLength());
    tokens_ = ReadTensorPlace(object.Get("tokenTable"), "tokenTable");
    positions_ = ReadTensorPlace(object.Get("positionTable"), "positionTable");
    project_in_ = ReadOptionalPlace(object, "projectIn");
    embed_ = ReadInteger(object, "embedSize", 1);
    output_ = ReadString(object, "output");
  }

 private:
  void Work(Pruner& pruner) override {
    pruning::EmbedSequences(pruner.workers, pruner.shape, ids_, pruning::ReadTensor(tokens_), embed_,
                            pruning::ReadTensor(positions_), ReadIfThere(project_in_), output_);
  }

  std::vector<int32_t> ids_;
  pruning::TensorPlace tokens_, positions_;
  std::optional<pruning::TensorPlace> project_in_;
  int64_t embed_ = 0;
  std::string output_;
};

/// openLayer(pruner, {linears: {name: {weight, bias?}}, norms: {name: {scale, shift}}, pruned: {input, context,
/// output}, dense?: {…}})
class OpenTask final : public PrunerTask {
 public:
  explicit OpenTask(const Napi::CallbackInfo& info)
      : PrunerTask(ReadHandle(info[0]), info.Env().Undefined(), info.Env().Undefined()) {
    const Napi::Object object = ReadObject(info[1], "layer");
    const Napi::Object linears = ReadObject(object.Get("linears"), "linears");
    for (size_t id = 0; id < kLinearNames.size(); ++id) {
      const Napi::Object linear = ReadObject(linears.Get(kLinearNames[id]), kLinearNames[id]);
      weights_[id] = ReadTensorPlace(linear.Get("weight"), "weight");
      biases_[id] = ReadOptionalPlace(linear, "bias");
    }
    const Napi::Object norms = ReadObject(object.Get("norms"), "norms");
    for (size_t id = 0; id < kNormNames.size(); ++id) {
      const Napi::Object norm = ReadObject(norms.Get(kNormNames[id]), kNormNames[id]);
      scales_[id] = ReadOptionalPlace(norm, "scale");
      shifts_[id] = ReadOptionalPlace(norm, "shift");
    }
    files_ = ReadFiles(object, "pruned");
    if (!object.Get("dense").IsUndefined()) dense_ = ReadFiles(object, "dense");
  }

 private:
  static pruning::LayerFiles ReadFiles(const Napi::Object& object, const char* name) {
    const Napi::Object files = ReadObject(object.Get(name), name);
    return {ReadString(files, "input"), ReadString(files, "context"), ReadString(files, "output")};
  }

  void Work(Pruner& pruner) override {
    pruner.layer.reset();
    std::array<pruning::Linear, pruning::kLinears> linears;
    for (size_t id = 0; id < linears.size(); ++id) {
      linears[id].weight = pruning::ReadTensor(weights_[id]);
      linears[id].bias = ReadIfThere(biases_[id]);
      linears[id].weight_type = weights_[id].type;
      if (biases_[id]) linears[id].bias_type = biases_[id]->type;
    }
    std::array<pruning::Norm, pruning::kNorms> norms;
    for (size_t id = 0; id < norms.size(); ++id) norms[id] = {ReadIfThere(scales_[id]), ReadIfThere(shifts_[id])};
    pruner.layer = std::make_unique<pruning::OptLayer>(*pruner.device, pruner.shape, std::move(linears),
                                                       std::move(norms), files_, dense_);
  }

  std::array<pruning::TensorPlace, pruning::kLinears> weights_;
  std::array<std::optional<pruning::TensorPlace>, pruning::kLinears> biases_;
  std::array<std::optional<pruning::TensorPlace>, pruning::kNorms> scales_, shifts_;
  pruning::LayerFiles files_, dense_;
};

/// collectInputs(pruner, stage, onProgress?, signal?)
class CollectTask final : public PrunerTask {
 public:
  explicit CollectTask(const Napi::CallbackInfo& info)
      : PrunerTask(ReadHandle(info[0]), info[2], info[3]), stage_(ReadStage(info[1])) {}

 private:
  void Work(Pruner& pruner) override { pruner.Layer().Collect(stage_, Report()); }

  const pruning::Stage stage_;
};

/// pruneLinear(pruner, linear, options, {weight, bias?}, onProgress?, signal?): {nnz, relativeError, alreadySparse}
class PruneTask final : public PrunerTask {
 public:
  explicit PruneTask(const Napi::CallbackInfo& info)
      : PrunerTask(ReadHandle(info[0]), info[4], info[5]),
        id_(ReadLinearId(info[1])),
        options_(ReadPruneOptions(info[2])),
        weight_(ReadTensorPlace(ReadObject(info[3], "destination").Get("weight"), "weight")),
        bias_(ReadOptionalPlace(ReadObject(info[3], "destination"), "bias")) {}

  Napi::Value Result(Napi::Env env) override {
    Napi::Object result = Napi::Object::New(env);
    result.Set("nnz", Napi::Number::New(env, static_cast<double>(report_.nnz)));
    result.Set("relativeError", Napi::Number::New(env, report_.relative_error));
    result.Set("alreadySparse", Napi::Boolean::New(env, report_.already_sparse));
    return result;
  }

 private:
  void Work(Pruner& pruner) override {
    pruning::OptLayer& layer = pruner.Layer();
    report_ = layer.Prune(id_, options_, Report());
    pruning::WriteTensor(weight_, layer.linear(id_).weight);
    if (bias_) pruning::WriteTensor(*bias_, layer.linear(id_).bias);
  }

  const pruning::LinearId id_;
  const pruning::PruneOptions options_;
  const pruning::TensorPlace weight_;
  const std::optional<pruning::TensorPlace> bias_;
  pruning::PruneReport report_;
};

/// finishLayer(pruner, onProgress?, signal?)
class FinishTask final : public PrunerTask {
 public:
  explicit FinishTask(const Napi::CallbackInfo& info) : PrunerTask(ReadHandle(info[0]), info[1], info[2]) {}

 private:
  void Work(Pruner& pruner) override {
    pruner.Layer().Finish(Report());
    pruner.layer.reset();
  }
};

pruning::Floats ReadFloats(const Napi::Object& object, const char* name, int64_t count) {
  const Napi::Value value = object.Get(name);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array ||
      static_cast<int64_t>(value.As<Napi::TypedArray>().ElementLength()) != count) {
    throw Napi::TypeError::New(object.Env(),
                               "Expected a Float32Array of " + std::to_string(count) + " elements for " + name);
  }
  const Napi::Float32Array array = value.As<Napi::Float32Array>();
  return pruning::Floats(array.Data(), array.Data() + array.ElementLength());
}

Napi::Float32Array ToArray(Napi::Env env, const pruning::Floats& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

/// pruneMatrix({outFeatures, inFeatures, tokens, weight, bias?, inputs, targets?}, options, device): {weight, bias?,
/// nnz, relativeError}
class MatrixTask final : public Task {
 public:
  explicit MatrixTask(const Napi::CallbackInfo& info)
      : options_(ReadPruneOptions(info[1])), choice_(ReadDevice(info[2])) {
    const Napi::Object object = ReadObject(info[0], "linear");
    linear_.out_features = ReadInteger(object, "outFeatures", 1);
    linear_.in_features = ReadInteger(object, "inFeatures", 1);
    tokens_ = ReadInteger(object, "tokens", 1);
    linear_.weight = ReadFloats(object, "weight", linear_.out_features * linear_.in_features);
    if (!object.Get("bias").IsUndefined()) linear_.bias = ReadFloats(object, "bias", linear_.out_features);
    inputs_ = ReadFloats(object, "inputs", tokens_ * linear_.in_features);
    if (!object.Get("targets").IsUndefined()) targets_ = ReadFloats(object, "targets", tokens_ * linear_.out_features);
  }

  void Execute() override {
    pruning::Workers workers(0);
    const std::unique_ptr<pruning::Device> device = MakeDevice(choice_, workers);
    device->set_cancelled(&cancelled_);
    pruning::InputStatistics statistics(*device, linear_.in_features);
    pruning::Array<float> inputs = pruning::ToDevice(*device, inputs_);
    statistics.Add(inputs.data(), tokens_);
    if (!targets_.empty()) {
      pruning::TargetStatistics target(*device, linear_.out_features, linear_.in_features);
      target.Add(pruning::ToDevice(*device, targets_).data(), inputs.data(), tokens_);
      target.Retarget(statistics, options_, &linear_);
    }
    report_ = pruning::PruneLinear(*device, statistics, options_, &linear_);
  }
  void Cancel() override { cancelled_ = true; }

  Napi::Value Result(Napi::Env env) override {
    Napi::Object result = Napi::Object::New(env);
    result.Set("weight", ToArray(env, linear_.weight));
    if (!linear_.bias.empty()) result.Set("bias", ToArray(env, linear_.bias));
    result.Set("nnz", Napi::Number::New(env, static_cast<double>(report_.nnz)));
    result.Set("relativeError", Napi::Number::New(env, report_.relative_error));
    return result;
  }

 private:
  const pruning::PruneOptions options_;
  const DeviceChoice choice_;
  pruning::Linear linear_;
  int64_t tokens_ = 0;
  pruning::Floats inputs_, targets_;
  std::atomic<bool> cancelled_{false};
  pruning::PruneReport report_;
};

/// createPruner({…shape, threads, device})
Napi::Value CreatePruner(const Napi::CallbackInfo& info) {
  const Napi::Object object = ReadObject(info[0], "shape");
  const pruning::OptShape shape = ReadOptShape(object);
  const int threads = static_cast<int>(ReadInteger(object, "threads", 0));
  const DeviceChoice choice = ReadDevice(object.Get("device"));
  return Boundary(info.Env(), [&]() -> Napi::Value {
    auto handle = std::make_unique<PrunerHandle>(std::make_shared<Pruner>(shape, threads, choice));
    return Napi::External<PrunerHandle>::New(info.Env(), handle.release(),
                                             [](Napi::Env, PrunerHandle* data) { delete data; });
  });
}

/// describePruner(pruner): what it computes on.
Napi::Value DescribePruner(const Napi::CallbackInfo& info) {
  const PrunerHandle pruner = ReadHandle(info[0]);
  return Boundary(info.Env(),
                  [&]() -> Napi::Value { return Napi::String::New(info.Env(), pruner->device->Describe()); });
}

}  // namespace

void InitPruning(Napi::Env env, Napi::Object exports) {
  exports.Set("createPruner", Napi::Function::New(env, CreatePruner, "createPruner"));
  exports.Set("describePruner", Napi::Function::New(env, DescribePruner, "describePruner"));
  exports.Set("embedSequences", Napi::Function::New(env, Start<EmbedTask>, "embedSequences"));
  exports.Set("openLayer", Napi::Function::New(env, Start<OpenTask>, "openLayer"));
  exports.Set("collectInputs", Napi::Function::New(env, Start<CollectTask>, "collectInputs"));
  exports.Set("pruneLinear", Napi::Function::New(env, Start<PruneTask>, "pruneLinear"));
  exports.Set("finishLayer", Napi::Function::New(env, Start<FinishTask>, "finishLayer"));
  exports.Set("pruneMatrix", Napi::Function::New(env, Start<MatrixTask>, "pruneMatrix"));
}

}  // namespace flashllm::node
