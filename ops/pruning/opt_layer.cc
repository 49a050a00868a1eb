#include "ops/pruning/opt_layer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/pruning/dense_kernels.h"
#include "ops/pruning/workers.h"

namespace flashllm::pruning {
namespace {

// Sequences computed together: as many as fit, so that results do not depend on the machine.
constexpr int64_t kGroup = 8;
constexpr int64_t kGroupBytes = int64_t{1} << 29;  // of the widest activation

/// The stage that gives a linear's inputs.
Stage StageOf(LinearId id) {
  if (id == kAttentionOut) return Stage::kAttentionOut;
  if (id == kFc1) return Stage::kFeedForwardIn;
  return id == kFc2 ? Stage::kFeedForwardOut : Stage::kAttentionIn;
}

void Check(size_t found, int64_t expected, const std::string& what) {
  if (found != static_cast<size_t>(expected)) {
    throw PruningError(what + " has " + std::to_string(found) + " elements, expected " + std::to_string(expected));
  }
}

}  // namespace

OptLayer::OptLayer(Device& device, const OptShape& shape, std::array<Linear, kLinears> linears,
                   std::array<Norm, kNorms> norms, const LayerFiles& pruned, const LayerFiles& dense)
    : device_(device), shape_(shape), linears_(std::move(linears)) {
  for (int id = 0; id < kLinears; ++id) {
    Linear& linear = linears_[id];
    linear.out_features = id == kFc1 ? shape.ffn : shape.hidden;
    linear.in_features = id == kFc2 ? shape.ffn : shape.hidden;
    Check(linear.weight.size(), linear.out_features * linear.in_features, "the weight of linear " + std::to_string(id));
    if (!linear.bias.empty())
      Check(linear.bias.size(), linear.out_features, "the bias of linear " + std::to_string(id));
    for (const Side side : {kPruned, kDense}) {
      if (side == kPruned || !dense.input.empty())
        weights_[side][id] = {ToDevice(device, linear.weight), ToDevice(device, linear.bias)};
    }
  }
  for (int id = 0; id < kNorms; ++id) {
    if (norms[id].scale.empty() && norms[id].shift.empty()) continue;
    Check(norms[id].scale.size(), shape.hidden, "the scale of a layer norm");
    Check(norms[id].shift.size(), shape.hidden, "the shift of a layer norm");
    norms_[id] = {ToDevice(device, norms[id].scale), ToDevice(device, norms[id].shift)};
  }
  sides_[kPruned] = OpenActivations(pruned);
  if (!dense.input.empty()) sides_[kDense] = OpenActivations(dense);
}

/// Room for an activation on the device if that leaves enough for the rest of the layer, else nothing.
Array<float> OptLayer::Resident() const {
  const int64_t inputs = std::max(shape_.hidden, shape_.ffn);
  // Moments and factors of the widest inputs, a method's copies of the largest weight, and a dozen groups of
  // activations.
  const int64_t rest = 8 * (4 * inputs * inputs + 9 * shape_.hidden * shape_.ffn) + 12 * kGroupBytes;
  const bool fits = device_.SpareBytes() - rest >= Elements() * static_cast<int64_t>(sizeof(float));
  return fits ? Array<float>(device_, Elements()) : Array<float>();
}

std::unique_ptr<OptLayer::Activations> OptLayer::OpenActivations(const LayerFiles& files) const {
  const auto open = [&](const std::string& path, ActivationFile::Mode mode) {
    return std::make_unique<ActivationFile>(path, Elements(), mode);
  };
  auto opened = std::make_unique<Activations>();
  opened->context.resident = Resident();
  if (opened->context.resident.empty()) opened->context.file = open(files.context, ActivationFile::Mode::kCreate);
  opened->output = {open(files.output, ActivationFile::Mode::kCreate), Resident()};
  opened->input = {open(files.input, ActivationFile::Mode::kRead), Resident()};
  Array<float>& input = opened->input.resident;
  if (!input.empty())
    device_.Upload(input.data(), opened->input.file->data(), static_cast<size_t>(input.size()) * sizeof(float));
  return opened;
}

void OptLayer::ForGroups(const Progress& progress, const std::function<void(const Group&)>& body) const {
  const int64_t sequence = shape_.length * std::max(shape_.hidden, shape_.ffn) * static_cast<int64_t>(sizeof(float));
  const int64_t size = std::clamp<int64_t>(kGroupBytes / sequence, 1, kGroup);
  for (int64_t first = 0; first < shape_.sequences; first += size) {
    const int64_t count = std::min(size, shape_.sequences - first);
    body({first, count});
    if (progress) progress(static_cast<double>(first + count) / static_cast<double>(shape_.sequences));
  }
}

Array<float> OptLayer::Load(const Activation& from, const Group& group) const {
  Array<float> x(device_, Tokens(group) * shape_.hidden);
  const size_t bytes = static_cast<size_t>(x.size()) * sizeof(float);
  if (from.resident.empty()) {
    device_.Upload(x.data(), from.file->data() + At(group), bytes);
  } else {
    device_.Copy(x.data(), from.resident.data() + At(group), bytes);
  }
  return x;
}

void OptLayer::Save(const Array<float>& x, const Group& group, Activation* to) const {
  const size_t bytes = static_cast<size_t>(x.size()) * sizeof(float);
  if (to->resident.empty()) {
    device_.Download(to->file->data() + At(group), x.data(), bytes);
  } else {
    device_.Copy(to->resident.data() + At(group), x.data(), bytes);
  }
}

void OptLayer::Collect(Stage stage, const Progress& progress) {
  inputs_.reset();  // before the next ones take their memory
  for (std::unique_ptr<TargetStatistics>& target : targets_) target.reset();
  inputs_ = std::make_unique<InputStatistics>(device_, Width(stage));
  ForGroups(progress, [&](const Group& group) {
    Array<float> x = ComputeInputs(kPruned, stage, group);
    const int64_t size = shape_.length * Width(stage);
    for (int64_t i = 0; i < group.count; ++i) inputs_->Add(x.data() + i * size, shape_.length);
    if (HasDense()) AddTargets(stage, group, x);
  });
}

/// The targets of the stage's linears; `shifted` are their inputs, as the statistics left them.
void OptLayer::AddTargets(Stage stage, const Group& group, const Array<float>& shifted) {
  const Array<float> x = ComputeInputs(kDense, stage, group);
  for (int index = 0; index < kLinears; ++index) {
    const LinearId id = static_cast<LinearId>(index);
    if (StageOf(id) != stage) continue;
    const Linear& linear = linears_[id];
    if (!targets_[id])
      targets_[id] = std::make_unique<TargetStatistics>(device_, linear.out_features, linear.in_features);
    const Array<float> y = ComputeTarget(id, group, x);
    for (int64_t i = 0; i < group.count; ++i) {
      targets_[id]->Add(y.data() + i * shape_.length * linear.out_features,
                        shifted.data() + i * shape_.length * linear.in_features, shape_.length);
    }
  }
}

/// What a linear gives in the dense model. One whose output is added to the residual stream also takes up what that has
/// lost.
Array<float> OptLayer::ComputeTarget(LinearId id, const Group& group, const Array<float>& x) {
  Array<float> y = Apply(kDense, id, x);
  if (id != kAttentionOut && id != kFc2) return y;
  const auto stream = [&](Side side) {
    return Load(id == kAttentionOut ? sides_[side]->input : sides_[side]->output, group);
  };
  device_.AddDifference(y.size(), stream(kDense).data(), stream(kPruned).data(), y.data());
  return y;
}

PruneReport OptLayer::Prune(LinearId id, const PruneOptions& options, const Progress& progress) {
  Linear& linear = linears_[id];
  if (inputs_ == nullptr || inputs_->features() != linear.in_features) {
    throw PruningError("linear " + std::to_string(id) + " was to be pruned before its inputs were collected");
  }
  if (targets_[id] && !IsSparse(linear, options.sparsity)) targets_[id]->Retarget(*inputs_, options, &linear);
  // The method is about to need their memory.
  targets_[id].reset();
  weights_[kPruned][id] = Parameters();
  const PruneReport report = PruneLinear(device_, *inputs_, options, &linear, progress);
  weights_[kPruned][id] = {ToDevice(device_, linear.weight), ToDevice(device_, linear.bias)};
  return report;
}

Array<float> OptLayer::ComputeInputs(Side side, Stage stage, const Group& group) {
  switch (stage) {
    case Stage::kAttentionIn:
      return BlockIn(kAttentionNorm, Load(sides_[side]->input, group));
    case Stage::kAttentionOut: {
      Array<float> x = Attend(side, group);
      Save(x, group, &sides_[side]->context);
      return x;
    }
    case Stage::kFeedForwardIn: {
      Array<float> stream = AddAttention(side, group);
      Save(stream, group, &sides_[side]->output);
      return BlockIn(kFinalNorm, std::move(stream));
    }
    case Stage::kFeedForwardOut:
      break;
  }
  return FeedForward(side, BlockIn(kFinalNorm, Load(sides_[side]->output, group)));
}

void OptLayer::Finish(const Progress& progress) {
  inputs_.reset();
  for (std::unique_ptr<TargetStatistics>& target : targets_) target.reset();
  FinishSide(kPruned, progress);
  if (HasDense()) FinishSide(kDense, {});
}

void OptLayer::FinishSide(Side side, const Progress& progress) {
  ForGroups(progress, [&](const Group& group) {
    Array<float> stream = Load(sides_[side]->output, group);
    Array<float> inputs(device_, stream.size());
    device_.Copy(inputs.data(), stream.data(), static_cast<size_t>(stream.size()) * sizeof(float));
    AddLinear(side, kFc2, FeedForward(side, BlockIn(kFinalNorm, std::move(inputs))), &stream);
    if (!shape_.pre_norm) Normalise(kFinalNorm, stream, &stream);
    ActivationFile& file = *sides_[side]->output.file;
    device_.Download(file.data() + At(group), stream.data(), static_cast<size_t>(stream.size()) * sizeof(float));
  });
  sides_[side]->output.file->Sync();
}

/// What the heads give: [tokens, hidden].
Array<float> OptLayer::Attend(Side side, const Group& group) {
  const Array<float> x = BlockIn(kAttentionNorm, Load(sides_[side]->input, group));
  const Array<float> q = Apply(side, kQuery, x);
  const Array<float> k = Apply(side, kKey, x);
  const Array<float> v = Apply(side, kValue, x);
  Array<float> y(device_, x.size());
  device_.Attend({group.count, shape_.length, shape_.heads, shape_.hidden / shape_.heads}, q.data(), k.data(), v.data(),
                 y.data());
  return y;
}

/// The residual stream where the feed-forward block begins: input + out_proj(context).
Array<float> OptLayer::AddAttention(Side side, const Group& group) {
  Array<float> stream = Load(sides_[side]->input, group);
  AddLinear(side, kAttentionOut, Load(sides_[side]->context, group), &stream);
  if (!shape_.pre_norm) Normalise(kAttentionNorm, stream, &stream);
  return stream;
}

/// What a block gets of the residual stream: [tokens, hidden].
Array<float> OptLayer::BlockIn(NormId id, Array<float> stream) const {
  if (shape_.pre_norm) Normalise(id, stream, &stream);
  return stream;
}

/// act(fc1(inputs)): [tokens, ffn].
Array<float> OptLayer::FeedForward(Side side, const Array<float>& inputs) {
  Array<float> inner = Apply(side, kFc1, inputs);
  device_.Activate(inner.size(), shape_.gelu, inner.data());
  return inner;
}

/// x·Wᵀ + b
Array<float> OptLayer::Apply(Side side, LinearId id, const Array<float>& x) const {
  const Linear& linear = linears_[id];
  Array<float> y(device_, x.size() / linear.in_features * linear.out_features);
  AddLinear(side, id, x, &y);
  return y;
}

/// y += x·Wᵀ + b
void OptLayer::AddLinear(Side side, LinearId id, const Array<float>& x, Array<float>* y) const {
  const Linear& linear = linears_[id];
  const Parameters& parameters = weights_[side][id];
  if (parameters.weight.empty()) {
    throw PruningError("linear " + std::to_string(id) + " was not pruned to the end: the layer has to be opened again");
  }
  const int64_t rows = x.size() / linear.in_features;
  if (!parameters.bias.empty()) device_.AddBias(rows, linear.out_features, parameters.bias.data(), y->data());
  Product<float> product;
  product.a = x.data();
  product.a_stride = linear.in_features;
  product.b = parameters.weight.data();
  product.b_stride = linear.in_features;
  product.b_transposed = true;
  product.c = y->data();
  product.c_stride = linear.out_features;
  product.m = rows;
  product.n = linear.out_features;
  product.k = linear.in_features;
  product.beta = 1;
  device_.Multiply(product);
}

/// y may be x.
void OptLayer::Normalise(NormId id, const Array<float>& x, Array<float>* y) const {
  const Parameters& norm = norms_[id];
  device_.Normalise(x.size() / shape_.hidden, shape_.hidden, x.data(), norm.weight.data(), norm.bias.data(), y->data());
}

void EmbedSequences(Workers& workers, const OptShape& shape, const std::vector<int32_t>& ids, const Floats& token_table,
                    int64_t embed, const Floats& position_table, const Floats& project_in, const std::string& output) {
  const int64_t hidden = shape.hidden;
  const int64_t vocabulary = static_cast<int64_t>(token_table.size()) / embed;
  Check(ids.size(), shape.sequences * shape.length, "the calibration text");
  Check(project_in.size(), project_in.empty() ? 0 : hidden * embed, "project_in");
  if (project_in.empty() && embed != hidden)
    throw PruningError("the embedding is not as wide as the layers and project_in is missing");
  if (static_cast<int64_t>(position_table.size()) < (shape.length + 2) * hidden) {
    throw PruningError("sequences of " + std::to_string(shape.length) + " tokens are longer than the model's " +
                       std::to_string(static_cast<int64_t>(position_table.size()) / hidden - 2) + " positions");
  }
  ActivationFile file(output, shape.sequences * shape.length * hidden, ActivationFile::Mode::kCreate);
  workers.For(shape.sequences, [&](int64_t sequence, int) {
    Floats rows(static_cast<size_t>(shape.length * embed));
    for (int64_t token = 0; token < shape.length; ++token) {
      const int64_t id = ids[static_cast<size_t>(sequence * shape.length + token)];
      if (id < 0 || id >= vocabulary) {
        throw PruningError("token " + std::to_string(id) + " of the calibration text is not one of the model's " +
                           std::to_string(vocabulary) + ": tokenizer and checkpoint are of different models");
      }
      std::copy_n(token_table.data() + id * embed, embed, rows.data() + token * embed);
    }
    float* y = file.data() + sequence * shape.length * hidden;
    std::copy_n(position_table.data() + 2 * hidden, shape.length * hidden, y);
    if (project_in.empty()) {
      for (size_t i = 0; i < rows.size(); ++i) y[i] += rows[i];
      return;
    }
    Product<float> product;
    product.a = rows.data();
    product.b = project_in.data();
    product.a_stride = product.b_stride = product.k = embed;
    product.b_transposed = true;
    product.c = y;
    product.c_stride = product.n = hidden;
    product.m = shape.length;
    product.beta = 1;
    BestDenseKernels().multiply_f32(product);
  });
  file.Sync();
}

}  // namespace flashllm::pruning
