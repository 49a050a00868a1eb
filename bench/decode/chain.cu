// What the kernels around the matrices cost in a decode step: a stack of decoder layers as a CUDA graph with
// programmatic dependent launch, whole and with some of its kernels left out. A kernel's cost is the difference: its
// own time, what it keeps its neighbours from overlapping, and one dependency more.
//   decode_chain [--model opt-13b] [--layers 40] [--sparsity 0.8,…] [--batch 1,8,…] [--context 256,…] [--json FILE]
//   [--commit ID]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "bench/spmm/list_option.h"
#include "bench/spmm/opt_models.h"
#include "bench/spmm/rotation.h"
#include "bench/spmm/timing.h"
#include "bench/spmm/workload.h"
#include "ops/decoder/cuda/attention.h"
#include "ops/decoder/cuda/layer_norm.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::bench {
namespace {

struct Options {
  std::string model = "opt-13b", json, commit = "unknown";
  int layers = 40;
  std::vector<double> sparsities = {0.8};
  std::vector<int> batches = {1, 8, 32}, contexts = {256};
};

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s: unknown option, or its value is missing\n", name.c_str());
      std::exit(2);
    }
    const char* const value = argv[++i];
    if (name == "--model")
      options.model = value;
    else if (name == "--layers")
      options.layers = std::atoi(value);
    else if (name == "--sparsity")
      options.sparsities = Split<double>(value);
    else if (name == "--batch")
      options.batches = Split<int>(value);
    else if (name == "--context")
      options.contexts = Split<int>(value);
    else if (name == "--json")
      options.json = value;
    else if (name == "--commit")
      options.commit = value;
    else
      std::fprintf(stderr, "%s: unknown option\n", name.c_str()), std::exit(2);
  }
  return options;
}

/// Device memory, zeroed.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    Check(cudaMalloc(&data_, bytes), "device memory");
    Check(cudaMemset(data_, 0, bytes), "device memory");
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  __half* half() const { return static_cast<__half*>(data_); }
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

/// A packed weight, in copies that no cache holds.
class Matrix {
 public:
  Matrix(const cuda::DeviceInfo& device, int64_t m, int64_t k, double sparsity) {
    const Workload workload(m, k, sparsity, 99);
    Check(cuda::MakePlan(workload.view(), device, {}, &plan_), "MakePlan");
    const Memory staging(plan_.staging_bytes);
    const cuda::DeviceParts parts{workload.bitmap, workload.row_offsets, workload.values, ValueType::kFloat16};
    Check(cuda::Measure(parts, staging.get(), nullptr, &plan_), "Measure");
    const Memory layout(plan_.layout_bytes);
    Check(cuda::Convert(plan_, parts, staging.get(), layout.get(), nullptr), "Convert");
    Check(cudaDeviceSynchronize(), "Convert");
    copies_ = std::make_unique<Rotation>(layout.get(), plan_.layout_bytes);
  }
  void Launch(int copy, const cuda::MatMulArgs& args, cudaStream_t stream) const {
    Check(cuda::Launch(plan_, copies_->at(copy), {}, args, stream), "SparseMatMul");
  }

 private:
  cuda::WeightPlan plan_;
  std::unique_ptr<Rotation> copies_;
};

struct Parts {
  const char* name;
  bool matrices, norms, attention;
};
constexpr Parts kChains[] = {{"all", true, true, true},           {"no norms", true, false, true},
                             {"no attention", true, true, false}, {"matrices", true, false, false},
                             {"norms", false, true, false},       {"attention", false, false, true}};

/// The layers of one model at one sparsity.
class Stack {
 public:
  Stack(const cuda::DeviceInfo& device, const Options& options, double sparsity)
      : device_(device), layers_(options.layers), h_(HiddenSize(options.model)), heads_(h_ / 128) {
    const auto shapes = LayerShapes(h_);
    for (const char* name : {"qkv", "o", "fc1", "fc2"}) {
      const auto [m, k] = shapes.at(name);
      matrices_.push_back(std::make_unique<Matrix>(device, m, k, sparsity));
    }
  }

  /// Microseconds of one layer of a chain.
  double Time(const Parts& parts, int batch, int context) {
    const Memory x(batch * h_ * 2), normed(batch * h_ * 2), wide(batch * 4 * h_ * 2), vectors(8 * h_ * 2);
    const int64_t cache_elements = batch * h_ * context;
    const Memory cache(layers_ * 2 * cache_elements * 2);
    FillRandom(x.half(), batch * h_, 7);
    FillRandom(vectors.half(), 4 * h_, 8);
    const std::vector<int32_t> last(batch, context - 1);
    const Memory seqlens(batch * 4);
    Check(cudaMemcpy(seqlens.get(), last.data(), batch * 4, cudaMemcpyHostToDevice), "lengths");

    cuda::LayerNormArgs norm;
    norm.x = x.get(), norm.y = normed.get();
    norm.scale = vectors.get(), norm.shift = vectors.half() + h_;
    norm.rows = batch, norm.width = h_;
    norm.constant_affine = norm.programmatic = true;

    cuda::AttentionArgs attention;
    attention.batch = batch, attention.sequence = 1, attention.heads = heads_, attention.head_dim = 128;
    cuda::SetPacked(wide.get(), &attention);
    attention.past_capacity = attention.present_capacity = attention.total = context;
    attention.seqlens = static_cast<const int32_t*>(seqlens.get());
    attention.output = normed.get();
    attention.scale = 0.0884f;
    attention.compute_capability = device_.compute_capability, attention.sm_count = device_.sm_count;
    attention.programmatic = true;
    const Memory workspace(std::max<int64_t>(16, cuda::AttentionWorkspaceBytes(attention)));
    attention.workspace = workspace.get();

    const auto multiply = [&](int which, int layer, const void* from, void* to, const void* residual,
                              cudaStream_t stream) {
      if (!parts.matrices) return;
      cuda::MatMulArgs args;
      args.x = from, args.y = to, args.n = batch;
      args.bias = vectors.get();
      args.residual = residual;
      args.activation = which == 2 ? cuda::Activation::kRelu : cuda::Activation::kNone;
      args.programmatic = true;
      matrices_[which]->Launch(layer, args, stream);
    };
    return TimeLaunches(layers_, [&](int layer, cudaStream_t stream) {
      if (parts.norms) Check(cuda::LaunchLayerNorm(norm, stream), "LayerNormalization");
      multiply(0, layer, normed.get(), wide.get(), nullptr, stream);
      attention.past_key = attention.present_key = cache.half() + 2 * layer * cache_elements;
      attention.past_value = attention.present_value = cache.half() + (2 * layer + 1) * cache_elements;
      if (parts.attention) Check(cuda::LaunchAttention(attention, stream), "attention");
      multiply(1, layer, normed.get(), x.get(), x.get(), stream);
      if (parts.norms) Check(cuda::LaunchLayerNorm(norm, stream), "LayerNormalization");
      multiply(2, layer, normed.get(), wide.get(), nullptr, stream);
      multiply(3, layer, wide.get(), x.get(), x.get(), stream);
    });
  }

 private:
  const cuda::DeviceInfo device_;
  const int layers_;
  const int64_t h_, heads_;
  std::vector<std::unique_ptr<Matrix>> matrices_;
};

struct Row {
  double sparsity;
  int batch, context;
  std::vector<double> us;  // of kChains
};

void WriteJson(const Options& options, const char* gpu, double bandwidth, const std::vector<Row>& rows) {
  if (options.json.empty()) return;
  const std::string part = options.json + ".part";
  FILE* const file = std::fopen(part.c_str(), "w");
  if (file == nullptr) return std::perror(part.c_str());
  char date[16];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof(date), "%Y-%m-%d", std::localtime(&now));
  std::fprintf(file,
               "{\n \"what\": \"microseconds of a decoder layer, whole and in parts\",\n \"date\": \"%s\", \"commit\": "
               "\"%s\", \"gpu\": \"%s\", \"model\": \"%s\", \"layers\": %d, \"readGBs\": %.0f,\n \"rows\": [",
               date, options.commit.c_str(), gpu, options.model.c_str(), options.layers, bandwidth);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::fprintf(file, "%s\n  {\"sparsity\": %.2f, \"batch\": %d, \"context\": %d", i == 0 ? "" : ",", rows[i].sparsity,
                 rows[i].batch, rows[i].context);
    for (size_t c = 0; c < rows[i].us.size(); ++c) std::fprintf(file, ", \"%s\": %.2f", kChains[c].name, rows[i].us[c]);
    std::fprintf(file, "}");
  }
  std::fprintf(file, "\n ]\n}\n");
  if (std::fclose(file) != 0 || std::rename(part.c_str(), options.json.c_str()) != 0) std::perror(options.json.c_str());
}

int Run(const Options& options) {
  cudaDeviceProp properties;
  cuda::DeviceInfo device;
  Check(cudaGetDeviceProperties(&properties, 0), "device");
  Check(cuda::GetDeviceInfo(0, &device), "GetDeviceInfo");
  const double bandwidth = ReadBandwidth();
  std::printf("%s, reads %.0f GB/s; %s, microseconds a layer\n", properties.name, bandwidth, options.model.c_str());
  std::vector<Row> rows;
  for (double sparsity : options.sparsities) {
    Stack stack(device, options, sparsity);
    for (int batch : options.batches) {
      for (int context : options.contexts) {
        rows.push_back({sparsity, batch, context, {}});
        std::printf("s=%.2f B=%-3d context %-5d", sparsity, batch, context);
        for (const Parts& parts : kChains) {
          rows.back().us.push_back(stack.Time(parts, batch, context));
          std::printf(" | %s %.2f", parts.name, rows.back().us.back());
          std::fflush(stdout);
        }
        std::printf("\n");
        WriteJson(options, properties.name, bandwidth, rows);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace flashllm::bench

int main(int argc, char** argv) { return flashllm::bench::Run(flashllm::bench::Parse(argc, argv)); }
