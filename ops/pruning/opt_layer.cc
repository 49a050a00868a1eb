#include "ops/pruning/opt_layer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/pruning/dense_kernels.h"

namespace flashllm::pruning {
namespace {

constexpr float kNormEpsilon = 1e-5f;
constexpr int64_t kQueryBlock = 128;  // rows of attention scores computed at once
// Bytes of inputs that one step of the statistics holds, if one sequence takes less.
constexpr int64_t kGroupBytes = int64_t{1} << 30;

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

OptLayer::Activations::Activations(const LayerFiles& files, int64_t floats)
    : input(files.input, floats, ActivationFile::Mode::kRead),
      context(files.context, floats, ActivationFile::Mode::kCreate),
      output(files.output, floats, ActivationFile::Mode::kCreate) {}

OptLayer::OptLayer(const OptShape& shape, std::array<Linear, kLinears> linears, std::array<Norm, kNorms> norms,
                   const LayerFiles& pruned, const LayerFiles& dense)
    : shape_(shape), norms_(std::move(norms)) {
  const int64_t floats = shape.sequences * shape.length * shape.hidden;
  sides_[kPruned] = std::make_unique<Activations>(pruned, floats);
  if (!dense.input.empty()) sides_[kDense] = std::make_unique<Activations>(dense, floats);
  for (int id = 0; id < kLinears; ++id) {
    Linear& linear = linears[id];
    linear.out_features = id == kFc1 ? shape.ffn : shape.hidden;
    linear.in_features = id == kFc2 ? shape.ffn : shape.hidden;
    Check(linear.weight.size(), linear.out_features * linear.in_features, "the weight of linear " + std::to_string(id));
    if (!linear.bias.empty()) Check(linear.bias.size(), linear.out_features, "the bias of linear " + std::to_string(id));
  }
  if (HasDense()) linears_[kDense] = linears;
  linears_[kPruned] = std::move(linears);
  for (const Norm& norm : norms_) {
    if (norm.scale.empty() && norm.shift.empty()) continue;
    Check(norm.scale.size(), shape.hidden, "the scale of a layer norm");
    Check(norm.shift.size(), shape.hidden, "the shift of a layer norm");
  }
}

void OptLayer::Collect(Workers& workers, Stage stage, const Progress& progress) {
  inputs_.reset();  // before the next ones take their memory
  for (std::unique_ptr<TargetStatistics>& target : targets_) target.reset();
  inputs_ = std::make_unique<InputStatistics>(Width(stage));
  const int64_t size = shape_.length * Width(stage);
  const int64_t fitting = std::max<int64_t>(1, kGroupBytes / (size * static_cast<int64_t>(sizeof(float))));
  const int64_t group = std::min<int64_t>({fitting, workers.threads(), shape_.sequences});
  Floats x(static_cast<size_t>(group * size));
  for (int64_t first = 0; first < shape_.sequences; first += group) {
    const int64_t count = std::min(group, shape_.sequences - first);
    workers.For(count, [&](int64_t i, int) { ComputeInputs(kPruned, stage, first + i, x.data() + i * size); });
    for (int64_t i = 0; i < count; ++i) inputs_->Add(workers, x.data() + i * size, shape_.length);
    if (HasDense()) AddTargets(workers, stage, first, count, x);
    if (progress) progress(static_cast<double>(first + count) / static_cast<double>(shape_.sequences));
  }
}

/// The targets of the stage's linears for `count` sequences; `shifted` are their inputs, as the statistics left them.
void OptLayer::AddTargets(Workers& workers, Stage stage, int64_t first, int64_t count, const Floats& shifted) {
  const int64_t size = shape_.length * Width(stage);
  Floats x(static_cast<size_t>(count * size));
  workers.For(count, [&](int64_t i, int) { ComputeInputs(kDense, stage, first + i, x.data() + i * size); });
  for (int index = 0; index < kLinears; ++index) {
    const LinearId id = static_cast<LinearId>(index);
    if (StageOf(id) != stage) continue;
    const Linear& linear = linears_[kDense][id];
    const int64_t outputs = shape_.length * linear.out_features;
    if (!targets_[id]) targets_[id] = std::make_unique<TargetStatistics>(linear.out_features, linear.in_features);
    Floats y(static_cast<size_t>(count * outputs));
    workers.For(count, [&](int64_t i, int) { ComputeTarget(id, first + i, x.data() + i * size, y.data() + i * outputs); });
    for (int64_t i = 0; i < count; ++i) {
      targets_[id]->Add(workers, y.data() + i * outputs, shifted.data() + i * size, shape_.length);
    }
  }
}

/// What a linear gives in the dense model. One whose output is added to the residual stream also takes up what that has lost.
void OptLayer::ComputeTarget(LinearId id, int64_t sequence, const float* x, float* y) {
  Apply(kDense, id, x, y, 0);
  if (id != kAttentionOut && id != kFc2) return;
  const bool attention = id == kAttentionOut;
  const float* dense = At(attention ? sides_[kDense]->input : sides_[kDense]->output, sequence);
  const float* pruned = At(attention ? sides_[kPruned]->input : sides_[kPruned]->output, sequence);
  for (int64_t i = 0; i < shape_.length * shape_.hidden; ++i) y[i] += dense[i] - pruned[i];
}

void OptLayer::Retarget(Workers& workers, LinearId id, double damping) {
  if (!targets_[id]) return;
  targets_[id]->Retarget(workers, *inputs_, damping, &linears_[kPruned][id]);
  targets_[id].reset();  // a large part of the memory that the method is about to need
}

void OptLayer::ComputeInputs(Side side, Stage stage, int64_t sequence, float* x) {
  const int64_t size = shape_.length * shape_.hidden;
  float* input = At(sides_[side]->input, sequence);
  switch (stage) {
    case Stage::kAttentionIn:
      if (shape_.pre_norm) return Normalise(kAttentionNorm, input, x);
      std::copy_n(input, size, x);
      return;
    case Stage::kAttentionOut:
      Attend(side, sequence, x);
      std::copy_n(x, size, At(sides_[side]->context, sequence));
      return;
    case Stage::kFeedForwardIn:
      AddAttention(side, sequence);
      return FeedForwardIn(side, sequence, x);
    case Stage::kFeedForwardOut:
      return FeedForward(side, sequence, x);
  }
}

void OptLayer::Finish(Workers& workers, const Progress& progress) {
  inputs_.reset();
  for (std::unique_ptr<TargetStatistics>& target : targets_) target.reset();
  FinishSide(workers, kPruned, progress);
  if (HasDense()) FinishSide(workers, kDense, {});
}

void OptLayer::FinishSide(Workers& workers, Side side, const Progress& progress) {
  std::atomic<int64_t> done{0};
  workers.For(shape_.sequences, [&](int64_t sequence, int worker) {
    Floats inner(static_cast<size_t>(shape_.length * shape_.ffn));
    FeedForward(side, sequence, inner.data());
    float* residual = At(sides_[side]->output, sequence);
    Apply(side, kFc2, inner.data(), residual, 1);
    if (!shape_.pre_norm) Normalise(kFinalNorm, residual, residual);
    const int64_t finished = ++done;
    if (worker == 0 && progress) progress(static_cast<double>(finished) / static_cast<double>(shape_.sequences));
  });
  sides_[side]->output.Sync();
}

/// x = what the heads give: [length, hidden].
void OptLayer::Attend(Side side, int64_t sequence, float* x) {
  const int64_t length = shape_.length;
  const int64_t hidden = shape_.hidden;
  const int64_t width = hidden / shape_.heads;
  const size_t size = static_cast<size_t>(length * hidden);
  Floats q(size), k(size), v(size);
  ComputeInputs(side, Stage::kAttentionIn, sequence, x);
  Apply(side, kQuery, x, q.data(), 0);
  Apply(side, kKey, x, k.data(), 0);
  Apply(side, kValue, x, v.data(), 0);
  Floats scores(static_cast<size_t>(std::min(kQueryBlock, length) * length));
  for (int64_t head = 0; head < shape_.heads; ++head) {
    for (int64_t first = 0; first < length; first += kQueryBlock) {
      const int64_t rows = std::min(kQueryBlock, length - first);
      const int64_t keys = first + rows;
      Product<float> product;
      product.a = q.data() + first * hidden + head * width;
      product.b = k.data() + head * width;
      product.a_stride = product.b_stride = hidden;
      product.b_transposed = true;
      product.c = scores.data();
      product.c_stride = length;
      product.m = rows;
      product.n = keys;
      product.k = width;
      product.alpha = 1.0f / std::sqrt(static_cast<float>(width));
      BestDenseKernels().multiply_f32(product);
      BestDenseKernels().causal_softmax(scores.data(), rows, keys, length, first);
      Product<float> values;
      values.a = scores.data();
      values.a_stride = length;
      values.b = v.data() + head * width;
      values.c = x + first * hidden + head * width;
      values.b_stride = values.c_stride = hidden;
      values.m = rows;
      values.n = width;
      values.k = keys;
      BestDenseKernels().multiply_f32(values);
    }
  }
}

/// output = input + out_proj(context), which is where the feed-forward block begins.
void OptLayer::AddAttention(Side side, int64_t sequence) {
  float* output = At(sides_[side]->output, sequence);
  std::copy_n(At(sides_[side]->input, sequence), shape_.length * shape_.hidden, output);
  Apply(side, kAttentionOut, At(sides_[side]->context, sequence), output, 1);
  if (!shape_.pre_norm) Normalise(kAttentionNorm, output, output);
}

void OptLayer::FeedForwardIn(Side side, int64_t sequence, float* x) {
  if (shape_.pre_norm) return Normalise(kFinalNorm, At(sides_[side]->output, sequence), x);
  std::copy_n(At(sides_[side]->output, sequence), shape_.length * shape_.hidden, x);
}

/// x = act(fc1(…)): [length, ffn].
void OptLayer::FeedForward(Side side, int64_t sequence, float* x) {
  Floats inputs(static_cast<size_t>(shape_.length * shape_.hidden));
  FeedForwardIn(side, sequence, inputs.data());
  Apply(side, kFc1, inputs.data(), x, 0);
  const int64_t size = shape_.length * shape_.ffn;
  if (shape_.gelu) {
    for (int64_t i = 0; i < size; ++i) x[i] *= 0.5f * (1 + std::erf(x[i] * 0.70710678f));
  } else {
    for (int64_t i = 0; i < size; ++i) x[i] = x[i] > 0 ? x[i] : 0;
  }
}

/// y = beta · y + x·Wᵀ + b for one sequence.
void OptLayer::Apply(Side side, LinearId id, const float* x, float* y, float beta) const {
  const Linear& linear = linears_[side][id];
  const int64_t columns = linear.out_features;
  for (int64_t token = 0; token < shape_.length; ++token) {
    float* row = y + token * columns;
    if (beta == 0) std::fill(row, row + columns, 0.0f);
    for (size_t i = 0; i < linear.bias.size(); ++i) row[i] += linear.bias[i];
  }
  Product<float> product;
  product.a = x;
  product.a_stride = linear.in_features;
  product.b = linear.weight.data();
  product.b_stride = linear.in_features;
  product.b_transposed = true;
  product.c = y;
  product.c_stride = columns;
  product.m = shape_.length;
  product.n = columns;
  product.k = linear.in_features;
  product.beta = 1;
  BestDenseKernels().multiply_f32(product);
}

/// Layer norm of one sequence; y may be x.
void OptLayer::Normalise(NormId id, const float* x, float* y) const {
  const int64_t n = shape_.hidden;
  const Norm& norm = norms_[id];
  for (int64_t token = 0; token < shape_.length; ++token, x += n, y += n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    const float mean = static_cast<float>(sum / static_cast<double>(n));
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(static_cast<float>(squares / static_cast<double>(n)) + kNormEpsilon);
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale;
    for (size_t i = 0; i < norm.scale.size(); ++i) y[i] = y[i] * norm.scale[i] + norm.shift[i];
  }
}

void EmbedSequences(Workers& workers, const OptShape& shape, const std::vector<int32_t>& ids, const Floats& token_table,
                    int64_t embed, const Floats& position_table, const Floats& project_in,
                    const std::string& output) {
  const int64_t hidden = shape.hidden;
  const int64_t vocabulary = static_cast<int64_t>(token_table.size()) / embed;
  Check(ids.size(), shape.sequences * shape.length, "the calibration text");
  Check(project_in.size(), project_in.empty() ? 0 : hidden * embed, "project_in");
  if (project_in.empty() && embed != hidden) throw PruningError("the embedding is not as wide as the layers and project_in is missing");
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
