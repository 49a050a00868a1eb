// Times the dense products, and SparseMatMul's prefill, against cublasGemmEx in one run: outputs checked, weights
// rotated through device memory.
//   dense_matmul_bench [--model opt-30b] [--matrices fc1,fc2,o,qkv,lm_head] [--n 1024,4096] [--sparsity 0.5,0.8]
//                      [--scratch-mib 64] [--sm80] [--json FILE] [--commit ID] [--no-cublas] [--no-dense]
// --sparsity adds the prefill of weights that sparse. The sm_80 kernels are timed too where --sm80 is given.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "bench/spmm/cublas.h"
#include "bench/spmm/list_option.h"
#include "bench/spmm/opt_models.h"
#include "bench/spmm/rotation.h"
#include "bench/spmm/timing.h"
#include "bench/spmm/workload.h"
#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/prefill.h"

namespace flashllm::bench {
namespace {

constexpr int64_t kVocabulary = 50272;  // OPT's
constexpr int kMostPacked = 512;        // columns up to which the packed weight is multiplied as it is, too

struct Options {
  std::string model = "opt-30b", json, commit = "unknown";
  std::vector<std::string> matrices = {"fc1", "fc2", "o", "qkv"};
  std::vector<int> columns = {1024, 4096};
  std::vector<double> sparsities;
  int64_t scratch_mib = 0;  // 0: what PrefillScratchBytes says
  bool cublas = true, dense = true, sm80 = false;
};

struct Result {
  std::string matrix, kernel;
  int64_t m = 0, k = 0;
  int n = 0;
  double sparsity = 0, us = 0, pdl_us = 0, cublas_us = 0, worst_error = 0;
};

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--no-cublas" || name == "--no-dense" || name == "--sm80") {
      (name == "--sm80" ? options.sm80 : name == "--no-dense" ? options.dense : options.cublas) = name == "--sm80";
      continue;
    }
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s: unknown option, or its value is missing\n", name.c_str());
      std::exit(2);
    }
    const char* const value = argv[++i];
    if (name == "--model")
      options.model = value;
    else if (name == "--matrices")
      options.matrices = Split<std::string>(value);
    else if (name == "--n")
      options.columns = Split<int>(value);
    else if (name == "--sparsity")
      options.sparsities = Split<double>(value);
    else if (name == "--scratch-mib")
      options.scratch_mib = std::atoll(value);
    else if (name == "--json")
      options.json = value;
    else if (name == "--commit")
      options.commit = value;
    else
      std::fprintf(stderr, "%s: unknown option\n", name.c_str()), std::exit(2);
  }
  return options;
}

/// Device memory for the lifetime of a scope.
class Memory {
 public:
  explicit Memory(int64_t bytes) { Check(cudaMalloc(&pointer_, std::max<int64_t>(bytes, 1)), "device memory"); }
  ~Memory() { cudaFree(pointer_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* get() const { return pointer_; }
  __half* half() const { return static_cast<__half*>(pointer_); }

 private:
  void* pointer_ = nullptr;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    Check(cudaGetDeviceProperties(&properties_, 0), "device");
    Check(cuda::GetDenseDevice(0, &device_), "GetDenseDevice");
    Check(cuda::GetDeviceInfo(0, &sparse_device_), "GetDeviceInfo");
    Check(cuda::PreparePrefill(sparse_device_), "PreparePrefill");
    bandwidth_ = ReadBandwidth();
    has_cublas_ = options.cublas && cublas_.Open();
    std::printf("%s, %d SMs, read bandwidth %.0f GB/s, cuBLAS %d\n", properties_.name, device_.sm_count, bandwidth_,
                cublas_.version());
  }

  int Run() {
    const int64_t h = HiddenSize(options_.model);
    auto shapes = LayerShapes(h);
    shapes["lm_head"] = {kVocabulary, h};
    for (const std::string& name : options_.matrices) {
      const auto found = shapes.find(name);
      if (found == shapes.end()) {
        std::fprintf(stderr, "--matrices %s: expected qkv, o, fc1, fc2 or lm_head\n", name.c_str());
        return 2;
      }
      RunMatrix(name, found->second.first, found->second.second);
    }
    PrintMeans();
    if (!options_.json.empty()) WriteJson();
    return std::any_of(results_.begin(), results_.end(), [](const Result& r) { return r.worst_error > 1; }) ? 1 : 0;
  }

 private:
  using Launcher = std::function<void(int, bool, cudaStream_t)>;  // number, programmatic, stream

  struct Candidate {
    const char* kernel;
    Launcher launch;
  };

  void RunMatrix(const std::string& name, int64_t m, int64_t k) {
    const int64_t most = *std::max_element(options_.columns.begin(), options_.columns.end());
    const Memory x(most * k * 2), y(most * m * 2);
    FillRandom(x.half(), most * k, 42);
    if (options_.dense) RunDense(name, Workload(m, k, 0.0, 5), x.half(), y.half());
    for (double sparsity : options_.sparsities)
      RunPrefill(name, Workload(m, k, sparsity, 1234), sparsity, x.half(), y.half());
  }

  void RunDense(const std::string& name, const Workload& w, const __half* x, __half* y) {
    const Rotation weights(w.dense, w.m * w.k * 2);
    cuda::DenseDevice older = device_;
    older.encode_tensor_map = nullptr;
    for (int n : options_.columns) {
      const auto launch_on = [&, n](const cuda::DenseDevice& device) {
        return [&, n](int i, bool programmatic, cudaStream_t stream) {
          cuda::DenseMatMulArgs args;
          args.w = weights.at(i), args.x = x, args.y = y, args.m = w.m, args.k = w.k, args.n = n;
          args.programmatic = programmatic;
          Check(cuda::LaunchDenseMatMul(device, args, stream), "LaunchDenseMatMul");
        };
      };
      std::vector<Candidate> candidates = {{"dense", launch_on(device_)}};
      if (options_.sm80) candidates.push_back({"dense-sm80", launch_on(older)});
      Compare({name, "", w.m, w.k, n, 0.0}, w, weights, x, y, candidates);
    }
  }

  void RunPrefill(const std::string& name, const Workload& w, double sparsity, const __half* x, __half* y) {
    cuda::WeightPlan plan;
    Check(cuda::MakePlan(w.view(), sparse_device_, {}, &plan), "MakePlan");
    const cuda::DeviceParts parts{w.bitmap, w.row_offsets, w.values, ValueType::kFloat16};
    const Memory staging(plan.staging_bytes);
    Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
    const Memory layout(plan.layout_bytes);
    Check(cuda::Convert(plan, parts, staging.get(), layout.get(), nullptr), "Convert");
    Check(cudaDeviceSynchronize(), "Convert");
    const Rotation packed(layout.get(), plan.layout_bytes), dense(w.dense, w.m * w.k * 2);
    MeasureExpansion(name, plan, packed, sparsity);
    const int64_t scratch_bytes =
        options_.scratch_mib > 0 ? options_.scratch_mib << 20 : cuda::PrefillScratchBytes(plan);
    const Memory scratch(scratch_bytes);
    for (int n : options_.columns) {
      cuda::MatMulArgs args;
      args.x = x, args.y = y, args.n = n;
      std::vector<Candidate> candidates = {
          {"prefill", [&, args](int i, bool programmatic, cudaStream_t stream) mutable {
             args.programmatic = programmatic;
             Check(cuda::PrefillMatMul(plan, packed.at(i), device_, args, scratch.get(), scratch_bytes, stream),
                   "PrefillMatMul");
           }}};
      if (n <= kMostPacked) {
        candidates.push_back({"packed", [&, args](int i, bool programmatic, cudaStream_t stream) mutable {
                                args.programmatic = programmatic;
                                Check(cuda::Launch(plan, packed.at(i), parts, args, stream), "Launch");
                              }});
      }
      Compare({name, "", w.m, w.k, n, sparsity}, w, dense, x, y, candidates);
    }
  }

  /// Prints the time of expanding the whole weight, and the bandwidth of what it reads and writes.
  void MeasureExpansion(const std::string& name, const cuda::WeightPlan& plan, const Rotation& weights,
                        double sparsity) {
    const double bytes = plan.layout_bytes + 2.0 * plan.out_features * plan.in_features;
    const Memory dense(2 * plan.out_features * plan.in_features);
    Result r{name, "expansion", plan.out_features, plan.in_features, 0, sparsity};
    r.us = TimeLaunches(weights.launches(), [&](int i, cudaStream_t stream) {
      Check(cuda::Expand(plan, weights.at(i), 0, plan.blocks, dense.get(), false, stream), "Expand");
    });
    results_.push_back(r);
    std::printf("%-8s expansion  s=%.2f          %9.2f us, %.0f GB/s = %.2f of read\n", name.c_str(), sparsity, r.us,
                bytes / r.us * 1e-3, bytes / r.us * 1e-3 / bandwidth_);
  }

  /// Checks the first and last columns of each candidate, then times all, cuBLAS on the same weights among them, in
  /// turns, so that none has the cooler GPU: medians of the rounds. Each is timed alone and with programmatic dependent
  /// launch.
  void Compare(const Result& base, const Workload& w, const Rotation& dense, const __half* x, __half* y,
               const std::vector<Candidate>& candidates) {
    constexpr int kRounds = 3, kLongColumns = 512;
    const int n = base.n, launches = n > kLongColumns ? 4 : dense.launches();
    const int64_t sample = std::min(n, 32), last = n - sample;
    std::vector<Result> found;
    for (const Candidate& candidate : candidates) {
      Check(cudaMemset(y, 0xff, w.m * n * 2), "poison");
      candidate.launch(1, false, nullptr);
      Check(cudaDeviceSynchronize(), candidate.kernel);
      found.push_back(base);
      found.back().kernel = candidate.kernel;
      found.back().worst_error =
          std::max(WorstError(w, x, y, sample), WorstError(w, x + last * w.k, y + last * w.m, sample));
    }
    std::vector<double> cublas;
    std::vector<std::vector<double>> plain(candidates.size()), pdl(candidates.size());
    for (int round = 0; round < kRounds; ++round) {
      if (has_cublas_) {
        cublas.push_back(TimeLaunches(launches, [&](int i, cudaStream_t stream) {
          cublas_.Gemm(static_cast<const __half*>(dense.at(i)), x, y, w.m, w.k, n, stream);
        }));
      }
      for (size_t c = 0; c < candidates.size(); ++c) {
        for (bool programmatic : {false, true}) {
          (programmatic ? pdl : plain)[c].push_back(TimeLaunches(
              launches, [&](int i, cudaStream_t stream) { candidates[c].launch(i, programmatic, stream); }));
        }
      }
    }
    for (size_t c = 0; c < candidates.size(); ++c) {
      found[c].us = Median(plain[c]), found[c].pdl_us = Median(pdl[c]);
      found[c].cublas_us = has_cublas_ ? Median(cublas) : 0;
      results_.push_back(found[c]);
      Print(found[c]);
    }
  }

  static double Median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }

  void Print(const Result& r) const {
    const double flops = 2.0 * r.m * r.k * r.n, bytes = 2.0 * (r.m * r.k + r.k * r.n + r.m * r.n);
    std::printf(
        "%-8s %-10s s=%.2f N=%-5d err %.2f | %9.2f us x%.3f | PDL %9.2f us x%.3f | cuBLAS %9.2f us | %4.0f "
        "TFLOP/s, %4.0f GB/s = %.2f of read\n",
        r.matrix.c_str(), r.kernel.c_str(), r.sparsity, r.n, r.worst_error, r.us, r.cublas_us / r.us, r.pdl_us,
        r.cublas_us / r.pdl_us, r.cublas_us, flops / r.us * 1e-6, bytes / r.us * 1e-3,
        bytes / r.us * 1e-3 / bandwidth_);
    std::fflush(stdout);
  }

  void PrintMeans() const {
    std::map<std::tuple<std::string, double, int>, std::pair<double, int>> logs;
    for (const Result& r : results_) {
      if (r.cublas_us == 0) continue;
      auto& [sum, count] = logs[{r.kernel, r.sparsity, r.n}];
      sum += std::log(r.cublas_us / r.us), ++count;
    }
    for (const auto& [key, sums] : logs) {
      std::printf("geometric mean %-10s s=%.2f N=%-5d x%.3f\n", std::get<0>(key).c_str(), std::get<1>(key),
                  std::get<2>(key), std::exp(sums.first / sums.second));
    }
  }

  void WriteJson() const {
    FILE* const out = std::fopen(options_.json.c_str(), "w");
    if (out == nullptr) {
      std::fprintf(stderr, "%s: cannot be written\n", options_.json.c_str());
      std::exit(1);
    }
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    char date[32];
    const std::time_t now = std::time(nullptr);
    std::strftime(date, sizeof(date), "%Y-%m-%d", std::gmtime(&now));
    std::fprintf(out,
                 "{\n  \"date\": \"%s\", \"commit\": \"%s\", \"gpu\": \"%s\", \"sms\": %d, \"driver\": %d, \"cudart\": "
                 "%d, \"cublas\": %d,\n  \"model\": \"%s\", \"readBandwidthGBs\": %.1f,\n  \"results\": [\n",
                 date, options_.commit.c_str(), properties_.name, device_.sm_count, driver, runtime, cublas_.version(),
                 options_.model.c_str(), bandwidth_);
    for (size_t i = 0; i < results_.size(); ++i) {
      const Result& r = results_[i];
      std::fprintf(out,
                   "    {\"matrix\": \"%s\", \"kernel\": \"%s\", \"m\": %lld, \"k\": %lld, \"n\": %d, \"sparsity\": "
                   "%.2f, \"us\": %.2f, \"pdlUs\": %.2f, \"cublasUs\": %.2f, \"worstError\": %.3f}%s\n",
                   r.matrix.c_str(), r.kernel.c_str(), static_cast<long long>(r.m), static_cast<long long>(r.k), r.n,
                   r.sparsity, r.us, r.pdl_us, r.cublas_us, r.worst_error, i + 1 < results_.size() ? "," : "");
    }
    std::fprintf(out, "  ]\n}\n");
    std::fclose(out);
  }

  Options options_;
  cudaDeviceProp properties_ = {};
  cuda::DenseDevice device_;
  cuda::DeviceInfo sparse_device_;
  double bandwidth_ = 0;
  Cublas cublas_;
  bool has_cublas_ = false;
  std::vector<Result> results_;
};

}  // namespace
}  // namespace flashllm::bench

int main(int argc, char** argv) { return flashllm::bench::Bench(flashllm::bench::Parse(argc, argv)).Run(); }
