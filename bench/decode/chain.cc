// What the kernels around the matrices cost in a decode step: a stack of decoder layers as a CUDA graph with
// programmatic dependent launch, whole and with some of its kernels left out. A kernel's cost is the difference: its
// own time, what it keeps its neighbours from overlapping, and one dependency more.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench/gpu/memory.h"
#include "bench/gpu/opt_models.h"
#include "bench/gpu/packed_weights.h"
#include "bench/gpu/report.h"
#include "bench/gpu/timing.h"
#include "bench/gpu/workload.h"
#include "bench/options.h"
#include "ops/decoder/cuda/attention_kernels.h"
#include "ops/decoder/cuda/layer_norm.h"

namespace flashllm::bench {
namespace {

constexpr int kSame = -1;  // --expected: the batch

struct Settings {
  std::string model = "opt-13b", json, commit = "unknown";
  int layers = 40, expected = kSame, splits = 0;
  std::vector<double> sparsities = {0.8};
  std::vector<int> batches = {1, 8, 32}, contexts = {256};
};

Settings Parse(int argc, char** argv) {
  Settings s;
  Options options("decode_chain: microseconds of a decoder layer in a decode step, whole and in parts. Options:");
  options.Add("--model", &s.model, "opt-1.3b, opt-6.7b, opt-13b (if not given), opt-30b, opt-66b or opt-175b");
  options.Add("--layers", &s.layers, "of the stack (40); they share weights in turns that no cache holds");
  options.Add("--sparsity", &s.sparsities, "shares of zeros, each from 0 to 1 (0.8)");
  options.Add("--batch", &s.batches, "sequences, one new token each (1,8,32)");
  options.Add("--context", &s.contexts, "positions with the new token (256)");
  options.Add("--expected", &s.expected,
              "columns for which weights are laid out: -1 the batch, 0 for 1 to 32 alike, or a number (-1)");
  options.Add("--splits", &s.splits, "parts of a sequence that attention takes side by side; 0 to choose (0)");
  options.Add("--json", &s.json, "file to write, anew after every row");
  options.Add("--commit", &s.commit, "what the file says was measured");
  options.Parse(argc, argv);
  options.Require(s.layers >= 1, "--layers: expected at least 1");
  options.Require(s.expected >= kSame, "--expected: expected -1, 0 or a number of columns");
  options.Require(s.splits >= 0 && s.splits <= cuda::decoder::kMaxSplits, "--splits: more parts than there can be");
  for (int batch : s.batches) options.Require(batch >= 1, "--batch: expected at least 1");
  for (int context : s.contexts) options.Require(context >= 1, "--context: expected at least 1");
  for (double sparsity : s.sparsities)
    options.Require(sparsity >= 0 && sparsity <= 1, "--sparsity: expected shares of zeros from 0 to 1");
  return s;
}

struct Chain {
  const char* name;
  bool matrices, norms, attention;
};
constexpr Chain kChains[] = {
    {"layer", true, true, true},      {"withoutNorms", true, false, true}, {"withoutAttention", true, true, false},
    {"matrices", true, false, false}, {"norms", false, true, false},       {"attention", false, false, true}};

enum Matrix : int { kQkv, kOut, kFc1, kFc2 };

/// The layers of one model at one sparsity, laid out for so many columns (PlanOptions::expected_n).
class Stack {
 public:
  Stack(const Gpu& gpu, const Settings& settings, double sparsity, int expected)
      : gpu_(gpu), layers_(settings.layers), splits_(settings.splits), h_(HiddenSize(settings.model)) {
    const auto shapes = LayerShapes(h_);
    cuda::PlanOptions options;
    options.expected_n = expected;
    for (const char* name : {"qkv", "o", "fc1", "fc2"}) {
      const auto [m, k] = shapes.at(name);
      weights_.push_back(std::make_unique<Workload>(m, k, sparsity, 99));
      matrices_.push_back(std::make_unique<PackedWeights>(*weights_.back(), gpu, options));
    }
  }

  /// Microseconds of a layer, of each of kChains.
  std::vector<double> Time(int batch, int context) const;

 private:
  const Gpu& gpu_;
  const int layers_, splits_;
  const int64_t h_;
  std::vector<std::unique_ptr<Workload>> weights_;
  std::vector<std::unique_ptr<PackedWeights>> matrices_;
};

/// A stack's activations, caches and launches for one batch and context.
class Step {
 public:
  Step(const Gpu& gpu, const std::vector<std::unique_ptr<PackedWeights>>& matrices, int64_t h, int layers, int batch,
       int context, int splits)
      : matrices_(matrices),
        batch_(batch),
        cache_elements_(batch * h * context),
        x_(batch * h * 2),
        residual_(batch * h * 2),
        narrow_(batch * h * 2),
        wide_(batch * 4 * h * 2),
        vectors_(6 * h * 2),
        cache_(layers * 2 * cache_elements_ * 2),
        seqlens_(batch * 4) {
    FillRandom(x_.half(), batch * h, 7);
    FillRandom(residual_.half(), batch * h, 9);
    FillRandom(vectors_.half(), 6 * h, 8);
    Check(cudaMemset(cache_.get(), 0, layers * 2 * cache_elements_ * 2), "cache");
    const std::vector<int32_t> last(batch, context - 1);
    Check(cudaMemcpy(seqlens_.get(), last.data(), batch * 4, cudaMemcpyHostToDevice), "lengths");

    norm_.x = x_.get(), norm_.y = narrow_.get();
    norm_.scale = vectors_.get(), norm_.shift = vectors_.half() + h;
    norm_.rows = batch, norm_.width = h;
    norm_.constant_affine = norm_.programmatic = true;

    attention_.batch = batch, attention_.sequence = 1, attention_.head_dim = HeadSize(h);
    attention_.heads = h / attention_.head_dim;
    cuda::SetPacked(wide_.get(), &attention_);
    attention_.past_capacity = attention_.present_capacity = attention_.total = context;
    attention_.seqlens = static_cast<const int32_t*>(seqlens_.get());
    attention_.output = narrow_.get();
    attention_.splits = splits;
    attention_.scale = 1 / std::sqrt(static_cast<float>(attention_.head_dim));
    attention_.compute_capability = gpu.sparse.compute_capability, attention_.sm_count = gpu.sparse.sm_count;
    attention_.programmatic = true;
    workspace_ = std::make_unique<Memory>(cuda::AttentionWorkspaceBytes(attention_));
    attention_.workspace = workspace_->get();
  }

  void Launch(const Chain& chain, int layer, cudaStream_t stream) {
    if (chain.norms) Check(cuda::LaunchLayerNorm(norm_, stream), "LayerNormalization");
    if (chain.matrices) Multiply(kQkv, layer, narrow_.get(), wide_.get(), stream);
    attention_.past_key = attention_.present_key = cache_.half() + 2 * layer * cache_elements_;
    attention_.past_value = attention_.present_value = cache_.half() + (2 * layer + 1) * cache_elements_;
    if (chain.attention) Check(cuda::LaunchAttention(attention_, stream), "attention");
    if (chain.matrices) Multiply(kOut, layer, narrow_.get(), x_.get(), stream);
    if (chain.norms) Check(cuda::LaunchLayerNorm(norm_, stream), "LayerNormalization");
    if (chain.matrices) Multiply(kFc1, layer, narrow_.get(), wide_.get(), stream);
    if (chain.matrices) Multiply(kFc2, layer, wide_.get(), x_.get(), stream);
  }

 private:
  void Multiply(Matrix which, int layer, const void* from, void* to, cudaStream_t stream) const {
    cuda::MatMulArgs args;
    args.x = from, args.y = to, args.n = batch_;
    args.bias = vectors_.get();
    if (which == kOut || which == kFc2) args.residual = residual_.get();  // not x, which would grow without end
    if (which == kFc1) args.activation = cuda::Activation::kRelu;
    args.programmatic = true;
    matrices_[which]->Multiply(layer, args, stream);
  }

  const std::vector<std::unique_ptr<PackedWeights>>& matrices_;
  const int batch_;
  const int64_t cache_elements_;
  const Memory x_, residual_, narrow_, wide_, vectors_, cache_, seqlens_;
  std::unique_ptr<Memory> workspace_;
  cuda::LayerNormArgs norm_;
  cuda::AttentionArgs attention_;
};

std::vector<double> Stack::Time(int batch, int context) const {
  Step step(gpu_, matrices_, h_, layers_, batch, context, splits_);
  std::vector<Candidate> candidates;
  for (const Chain& chain : kChains) {
    candidates.push_back(
        {layers_, [&step, &chain](int layer, cudaStream_t stream) { step.Launch(chain, layer, stream); }});
  }
  return TimeInTurns(candidates);
}

int Run(const Settings& settings) {
  cudaDeviceProp properties = {};
  Check(cudaGetDeviceProperties(&properties, 0), "device");
  Gpu gpu;
  gpu.Prepare();
  const double bandwidth = ReadBandwidth();
  std::printf("%s, reads %.0f GB/s; %s, microseconds of a layer\n", properties.name, bandwidth, settings.model.c_str());
  JsonObject header = DescribeRun(settings.commit, properties);
  header.Text("model", settings.model).Integer("layers", settings.layers).Integer("expectedColumns", settings.expected);
  Report report(settings.json, header.Number("readBandwidthGBs", bandwidth, 1));
  for (double sparsity : settings.sparsities) {
    std::unique_ptr<Stack> stack;
    for (int batch : settings.batches) {
      // Laid out once where that does not depend on the batch.
      const bool same = settings.expected == kSame;
      if (same || stack == nullptr) {
        stack.reset();
        stack = std::make_unique<Stack>(gpu, settings, sparsity, same ? batch : settings.expected);
      }
      for (int context : settings.contexts) {
        const std::vector<double> us = stack->Time(batch, context);
        JsonObject row;
        row.Number("sparsity", sparsity, 2).Integer("batch", batch).Integer("context", context);
        std::printf("s=%.2f B=%-3d context %-5d", sparsity, batch, context);
        for (size_t i = 0; i < us.size(); ++i) {
          row.Number(kChains[i].name, us[i], 2);
          std::printf(" | %s %.2f", kChains[i].name, us[i]);
        }
        std::printf("\n");
        report.Add("rows", row);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace flashllm::bench

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  return flashllm::bench::Run(flashllm::bench::Parse(argc, argv));
}
