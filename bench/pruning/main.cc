// Seconds and memory of pruning decoder layers of random weights on random activations (pruning_bench --help): what
// `flashllm prune` does for each layer, with compensation, but for reading the checkpoint and writing it. Prints JSON.
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>

#include "bench/options.h"
#include "ops/pruning/device.h"
#include "ops/pruning/opt_layer.h"
#if defined(FLASHLLM_HAS_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace {

using namespace flashllm::pruning;  // NOLINT: a program
using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Uniform numbers of mean 0 and variance 1; a 64-bit mix of a counter (splitmix64), so that any part can be made at
/// once.
float RandomAt(uint64_t index) {
  uint64_t z = index * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (static_cast<float>((z ^ (z >> 31)) >> 40) / 8388608.0f - 1.0f) * 1.7320508f;
}

void Fill(Workers& workers, uint64_t seed, float scale, float* values, int64_t count) {
  constexpr int64_t kChunk = 1 << 20;
  workers.For((count + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    const int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) values[i] = scale * RandomAt(seed + static_cast<uint64_t>(i));
  });
}

std::array<Linear, kLinears> RandomLinears(Workers& workers, const OptShape& shape, uint64_t seed) {
  std::array<Linear, kLinears> linears;
  for (int id = 0; id < kLinears; ++id) {
    const int64_t outs = id == kFc1 ? shape.ffn : shape.hidden;
    const int64_t ins = id == kFc2 ? shape.ffn : shape.hidden;
    linears[id].weight.resize(static_cast<size_t>(outs * ins));
    linears[id].bias.resize(static_cast<size_t>(outs));
    linears[id].weight_type = linears[id].bias_type = flashllm::ValueType::kFloat16;
    Fill(workers, seed + (uint64_t{1} << 40) * static_cast<uint64_t>(id), 1 / std::sqrt(static_cast<float>(ins)),
         linears[id].weight.data(), outs * ins);
  }
  return linears;
}

/// Bytes of the GPU's memory pool that were in use at once, and what the GPU has.
std::pair<double, double> GpuGigabytes() {
#if defined(FLASHLLM_HAS_CUDA)
  cudaMemPool_t pool = nullptr;
  uint64_t most = 0;
  size_t free = 0, total = 0;
  if (cudaDeviceGetDefaultMemPool(&pool, 0) == cudaSuccess)
    cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &most);
  cudaMemGetInfo(&free, &total);
  return {static_cast<double>(most) / 1e9, static_cast<double>(total) / 1e9};
#else
  return {0, 0};
#endif
}

struct Settings {
  OptShape shape;
  std::string method = "sparsegpt", device = "cuda", folder = "/tmp";
  double sparsity = 0.5;
  int layers = 1;
  int threads = 0;
};

Settings Parse(int argc, char** argv) {
  Settings settings;
  OptShape& shape = settings.shape;
  shape.hidden = 2048;
  shape.heads = 32;
  shape.sequences = 128;
  shape.length = 2048;
  flashllm::bench::Options options("Seconds and memory of pruning decoder layers, as JSON.");
  options.Add("--hidden", &shape.hidden, "hidden size");
  options.Add("--ffn", &shape.ffn, "size of the feed-forward part (default: 4 times hidden)");
  options.Add("--heads", &shape.heads, "heads of attention");
  options.Add("--sequences", &shape.sequences, "calibration sequences");
  options.Add("--length", &shape.length, "tokens of each");
  options.Add("--method", &settings.method, "sparsegpt or admm");
  options.Add("--sparsity", &settings.sparsity, "zeros in each linear, 0 to 1");
  options.Add("--layers", &settings.layers, "layers, one after the other");
  options.Add("--device", &settings.device, "cuda or cpu");
  options.Add("--threads", &settings.threads, "on the CPU (0: one a core)");
  options.Add("--folder", &settings.folder, "where activations lie");
  options.Parse(argc, argv);
  if (shape.ffn == 0) shape.ffn = 4 * shape.hidden;
  options.Require(shape.hidden > 0 && shape.ffn > 0 && shape.heads > 0 && shape.hidden % shape.heads == 0,
                  "--hidden, --ffn, --heads: expected sizes > 0, hidden a multiple of heads");
  options.Require(shape.sequences > 0 && shape.length > 0 && settings.layers > 0,
                  "--sequences, --length, --layers: expected numbers > 0");
  options.Require(settings.sparsity >= 0 && settings.sparsity < 1, "--sparsity: expected 0 to less than 1");
  options.Require(settings.threads >= 0, "--threads: expected a number >= 0");
  options.Require(settings.method == "sparsegpt" || settings.method == "admm", "--method: expected sparsegpt or admm");
  options.Require(settings.device == "cuda" || settings.device == "cpu", "--device: expected cuda or cpu");
  return settings;
}

/// Prunes one layer and prints its times.
void PruneLayer(Device& device, Workers& workers, const OptShape& shape, const PruneOptions& options,
                const std::string& folder, int layer) {
  const std::string from = folder + "/hidden-" + std::to_string(layer);
  const std::string to = folder + "/hidden-" + std::to_string(layer + 1);
  const std::string dense = layer == 0 ? from : from + "-dense";
  std::array<Norm, kNorms> norms;
  for (Norm& norm : norms) {
    norm.scale.assign(static_cast<size_t>(shape.hidden), 1.0f);
    norm.shift.assign(static_cast<size_t>(shape.hidden), 0.0f);
  }
  std::array<Linear, kLinears> linears = RandomLinears(workers, shape, static_cast<uint64_t>(layer + 1) << 44);
  const Clock::time_point start = Clock::now();
  OptLayer pruned(device, shape, std::move(linears), norms, {from, folder + "/context", to},
                  {dense, folder + "/context-dense", to + "-dense"});
  const double opened = Since(start);
  constexpr std::array<const char*, kLinears> kNames = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"};
  constexpr std::array<Stage, kLinears> kStages = {Stage::kAttentionIn,  Stage::kAttentionIn,   Stage::kAttentionIn,
                                                   Stage::kAttentionOut, Stage::kFeedForwardIn, Stage::kFeedForwardOut};
  std::printf("%s    {\"open\": %.3f", layer == 0 ? "" : ",\n", opened);
  for (int id = 0; id < kLinears; ++id) {
    Clock::time_point step = Clock::now();
    if (id == 0 || kStages[id] != kStages[id - 1]) pruned.Collect(kStages[id], {});
    const double collected = Since(step);
    step = Clock::now();
    const PruneReport report = pruned.Prune(static_cast<LinearId>(id), options, {});
    std::printf(", \"%s\": {\"collect\": %.3f, \"prune\": %.3f, \"relativeError\": %.4f}", kNames[id], collected,
                Since(step), report.relative_error);
    std::fflush(stdout);
  }
  const Clock::time_point step = Clock::now();
  pruned.Finish({});
  std::printf(", \"finish\": %.3f, \"seconds\": %.3f}", Since(step), Since(start));
  std::fflush(stdout);
}

void Run(const Settings& settings) {
  const OptShape& shape = settings.shape;
  PruneOptions options;
  options.method = settings.method == "admm" ? Method::kAdmm : Method::kSparseGpt;
  options.sparsity = settings.sparsity;
  Workers workers(settings.threads);
  const bool gpu = settings.device == "cuda";
  const std::unique_ptr<Device> device = gpu ? MakeCudaDevice(workers, 0) : MakeCpuDevice(workers);
  const std::string folder = settings.folder + "/pruning-bench-" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  const int64_t floats = shape.sequences * shape.length * shape.hidden;
  {
    ActivationFile input(folder + "/hidden-0", floats, ActivationFile::Mode::kCreate);
    Fill(workers, 1, 1, input.data(), floats);
  }
  std::printf(
      "{\n  \"device\": \"%s\",\n  \"hidden\": %lld, \"ffn\": %lld, \"heads\": %lld, \"sequences\": %lld, \"length\": "
      "%lld,\n",
      device->Describe().c_str(), static_cast<long long>(shape.hidden), static_cast<long long>(shape.ffn),
      static_cast<long long>(shape.heads), static_cast<long long>(shape.sequences),
      static_cast<long long>(shape.length));
  std::printf("  \"method\": \"%s\", \"sparsity\": %g,\n  \"layers\": [\n", settings.method.c_str(), options.sparsity);
  for (int layer = 0; layer < settings.layers; ++layer) {
    PruneLayer(*device, workers, shape, options, folder, layer);
    std::filesystem::remove(folder + "/hidden-" + std::to_string(layer));
    std::filesystem::remove(folder + "/hidden-" + std::to_string(layer) + "-dense");
  }
  std::filesystem::remove_all(folder);
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto [most, total] = gpu ? GpuGigabytes() : std::pair<double, double>();
  std::printf("\n  ],\n  \"gpuGigabytesUsed\": %.2f, \"gpuGigabytes\": %.1f, \"hostGigabytesResident\": %.2f\n}\n",
              most, total, static_cast<double>(usage.ru_maxrss) / 1e6);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    Run(Parse(count, arguments));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
