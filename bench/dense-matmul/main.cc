// Times the dense products, and SparseMatMul's prefill, against cublasGemmEx in one run: outputs checked, weights
// rotated through device memory.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <tuple>

#include "bench/gpu/cublas.h"
#include "bench/gpu/memory.h"
#include "bench/gpu/opt_models.h"
#include "bench/gpu/packed_weights.h"
#include "bench/gpu/report.h"
#include "bench/gpu/rotation.h"
#include "bench/gpu/timing.h"
#include "bench/gpu/workload.h"
#include "bench/options.h"
#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/prefill.h"

namespace flashllm::bench {
namespace {

constexpr int64_t kVocabulary = 50272;  // OPT's
constexpr int kMostPacked = 4096;       // columns up to which the packed weight is multiplied as it is, too

struct Settings {
  std::string model = "opt-30b", json, commit = "unknown";
  std::vector<std::string> matrices = {"fc1", "fc2", "o", "qkv"};
  std::vector<int> columns = {1024, 4096};
  std::vector<double> sparsities;
  int64_t scratch_mib = 0;
  int expected = 0;
  bool cublas = true, dense = true, sm80 = false;
};

struct Result {
  std::string matrix, kernel;
  int64_t m = 0, k = 0;
  int n = 0;
  double sparsity = 0, us = NAN, pdl_us = NAN, cublas_us = NAN, worst_error = 0;
};

Settings Parse(int argc, char** argv) {
  Settings s;
  Options options("dense_matmul_bench: times dense products and prefill on OPT's matrices. Options:");
  options.Add("--model", &s.model, "opt-1.3b, opt-6.7b, opt-13b, opt-30b (if not given), opt-66b or opt-175b");
  options.Add("--matrices", &s.matrices, "of qkv,o,fc1,fc2,lm_head (qkv,o,fc1,fc2)");
  options.Add("--n", &s.columns, "columns of X (1024,4096)");
  options.Add("--sparsity", &s.sparsities, "shares of zeros of weights whose prefill is timed too (none)");
  options.Add("--scratch-mib", &s.scratch_mib, "scratch of prefill in MiB, 0 for what PrefillScratchBytes says (0)");
  options.Add("--expected", &s.expected, "columns for which sparse weights are laid out, 0 for 1 to 32 alike (0)");
  options.Add("--json", &s.json, "file to write, anew after every row");
  options.Add("--commit", &s.commit, "what the file says was measured");
  options.AddFlag("--sm80", &s.sm80, true, "time the kernels of sm_80 too");
  options.AddFlag("--no-cublas", &s.cublas, false, "time nothing beside the kernels");
  options.AddFlag("--no-dense", &s.dense, false, "time prefill only");
  options.Parse(argc, argv);
  for (int n : s.columns) options.Require(n >= 1, "--n: expected at least 1");
  for (double sparsity : s.sparsities) {
    options.Require(sparsity >= 0 && sparsity <= 1, "--sparsity: expected shares of zeros from 0 to 1");
  }
  return s;
}

class Bench {
 public:
  explicit Bench(const Settings& settings) : settings_(settings), report_(settings.json, Start()) {}

  int Run() {
    const int64_t h = HiddenSize(settings_.model);
    auto shapes = LayerShapes(h);
    shapes["lm_head"] = {kVocabulary, h};
    for (const std::string& name : settings_.matrices) {
      const auto found = shapes.find(name);
      if (found == shapes.end()) {
        std::fprintf(stderr, "--matrices %s: expected qkv, o, fc1, fc2 or lm_head\n", name.c_str());
        return 2;
      }
      RunMatrix(name, found->second.first, found->second.second);
    }
    PrintMeans();
    return wrong_ ? 1 : 0;
  }

 private:
  struct Kernel {
    const char* name;
    std::function<void(int, bool, cudaStream_t)> launch;  // number, programmatic, stream
  };

  /// Readies the kernels and cuBLAS; returns the results file's header.
  JsonObject Start() {
    cudaDeviceProp properties = {};
    Check(cudaGetDeviceProperties(&properties, 0), "device");
    gpu_.Prepare();
    bandwidth_ = ReadBandwidth();
    has_cublas_ = settings_.cublas && cublas_.Open();
    std::printf("%s, %d SMs, read bandwidth %.0f GB/s, cuBLAS %d\n", properties.name, gpu_.dense.sm_count, bandwidth_,
                cublas_.version());
    JsonObject header = DescribeRun(settings_.commit, properties);
    header.Integer("cublas", cublas_.version()).Text("model", settings_.model);
    return header.Number("readBandwidthGBs", bandwidth_, 1);
  }

  void RunMatrix(const std::string& name, int64_t m, int64_t k) {
    const int64_t most = *std::max_element(settings_.columns.begin(), settings_.columns.end());
    const Memory x(most * k * 2), y(most * m * 2);
    FillRandom(x.half(), most * k, 42);
    if (settings_.dense) RunDense(name, Workload(m, k, 0.0, 5), x.half(), y.half());
    for (double sparsity : settings_.sparsities)
      RunPrefill(name, Workload(m, k, sparsity, 1234), sparsity, x.half(), y.half());
  }

  void RunDense(const std::string& name, const Workload& w, const __half* x, __half* y) {
    const Rotation weights(w.dense, w.m * w.k * 2);
    cuda::DenseDevice older = gpu_.dense;
    older.encode_tensor_map = nullptr;
    for (int n : settings_.columns) {
      const auto launch_on = [&, n](const cuda::DenseDevice& device) {
        return [&, n](int i, bool programmatic, cudaStream_t stream) {
          cuda::DenseMatMulArgs args;
          args.w = weights.at(i), args.x = x, args.y = y, args.m = w.m, args.k = w.k, args.n = n;
          args.programmatic = programmatic;
          Check(cuda::LaunchDenseMatMul(device, args, stream), "LaunchDenseMatMul");
        };
      };
      std::vector<Kernel> kernels = {{"dense", launch_on(gpu_.dense)}};
      if (settings_.sm80) kernels.push_back({"dense-sm80", launch_on(older)});
      Compare({name, "", w.m, w.k, n, 0.0}, w, weights, x, y, kernels);
    }
  }

  void RunPrefill(const std::string& name, const Workload& w, double sparsity, const __half* x, __half* y) {
    cuda::PlanOptions options;
    options.expected_n = settings_.expected;
    options.packed = true;
    const PackedWeights packed(w, gpu_, options);
    const cuda::WeightPlan& plan = packed.plan();
    const Rotation dense(w.dense, w.m * w.k * 2);
    MeasureExpansion(name, packed, sparsity);
    const int64_t scratch_bytes =
        settings_.scratch_mib > 0 ? settings_.scratch_mib << 20 : cuda::PrefillScratchBytes(plan);
    const Memory scratch(scratch_bytes);
    for (int n : settings_.columns) {
      cuda::MatMulArgs args;
      args.x = x, args.y = y, args.n = n;
      std::vector<Kernel> kernels = {
          {"prefill",
           [&, args](int i, bool programmatic, cudaStream_t stream) mutable {
             args.programmatic = programmatic;
             Check(cuda::PrefillMatMul(plan, packed.at(i), gpu_.dense, args, scratch.get(), scratch_bytes, stream),
                   "PrefillMatMul");
           }},
          {"expanded", [&, args](int i, bool programmatic, cudaStream_t stream) mutable {
             args.programmatic = programmatic;
             Check(cuda::ExpandedMatMul(plan, dense.at(i), gpu_.dense, args, stream), "ExpandedMatMul");
           }}};
      if (n <= kMostPacked) {
        kernels.push_back({"packed", [&, args](int i, bool programmatic, cudaStream_t stream) mutable {
                             args.programmatic = programmatic;
                             Check(cuda::Launch(plan, packed.at(i), packed.parts(), args, stream), "Launch");
                           }});
      }
      Compare({name, "", w.m, w.k, n, sparsity}, w, dense, x, y, kernels);
    }
  }

  /// Prints the time of expanding the whole weight, and the bandwidth of what it reads and writes.
  void MeasureExpansion(const std::string& name, const PackedWeights& weights, double sparsity) {
    const cuda::WeightPlan& plan = weights.plan();
    const double bytes = plan.layout_bytes + 2.0 * plan.out_features * plan.in_features;
    const Memory dense(2 * plan.out_features * plan.in_features);
    const auto order = plan.in_features % cuda::kPanelK == 0 ? cuda::WeightOrder::kPanels : cuda::WeightOrder::kRows;
    Result r{name, "expansion", plan.out_features, plan.in_features, 0, sparsity};
    r.us = TimeInTurns({{weights.launches(), [&](int i, cudaStream_t stream) {
                           Check(cuda::Expand(plan, weights.at(i), 0, plan.blocks, dense.get(), order, false, stream),
                                 "Expand");
                         }}})[0];
    Add(r);
    std::printf("%-8s expansion  s=%.2f          %9.2f us, %.0f GB/s = %.2f of read\n", name.c_str(), sparsity, r.us,
                bytes / r.us * 1e-3, bytes / r.us * 1e-3 / bandwidth_);
  }

  /// Checks each kernel, then times all, alone and with programmatic dependent launch, and cuBLAS on the same weights.
  void Compare(const Result& base, const Workload& w, const Rotation& dense, const __half* x, __half* y,
               const std::vector<Kernel>& kernels) {
    const int n = base.n, launches = LaunchesFor(n, dense.launches());
    std::vector<Result> found;
    std::vector<Candidate> candidates;
    for (const Kernel& kernel : kernels) {
      Check(cudaMemset(y, 0xff, w.m * n * 2), "poison");
      kernel.launch(1, false, nullptr);
      Check(cudaDeviceSynchronize(), kernel.name);
      found.push_back(base);
      found.back().kernel = kernel.name;
      found.back().worst_error = WorstSampledError(w.dense, w.m, w.k, x, y, n);
      for (bool programmatic : {false, true}) {
        candidates.push_back(
            {launches, [&, programmatic](int i, cudaStream_t stream) { kernel.launch(i, programmatic, stream); }});
      }
    }
    if (has_cublas_) {
      candidates.push_back({launches, [&](int i, cudaStream_t stream) {
                              cublas_.Gemm(static_cast<const __half*>(dense.at(i)), x, y, w.m, w.k, n, stream);
                            }});
    }
    const std::vector<double> us = TimeInTurns(candidates);
    for (size_t i = 0; i < found.size(); ++i) {
      Result& r = found[i];
      r.us = us[2 * i], r.pdl_us = us[2 * i + 1];
      if (has_cublas_) r.cublas_us = us.back();
      Add(r);
      Print(r);
    }
  }

  void Add(const Result& r) {
    wrong_ = wrong_ || r.worst_error > 1;
    if (std::isfinite(r.cublas_us)) {
      auto& [sum, count] = logs_[{r.kernel, r.sparsity, r.n}];
      sum += std::log(r.cublas_us / r.us), ++count;
    }
    JsonObject row;
    row.Text("matrix", r.matrix).Text("kernel", r.kernel).Integer("m", r.m).Integer("k", r.k).Integer("n", r.n);
    row.Number("sparsity", r.sparsity, 2).Number("us", r.us, 2).Number("pdlUs", r.pdl_us, 2);
    report_.Add("results", row.Number("cublasUs", r.cublas_us, 2).Number("worstError", r.worst_error, 3));
  }

  void Print(const Result& r) const {
    const double flops = 2.0 * r.m * r.k * r.n, bytes = 2.0 * (r.m * r.k + r.k * r.n + r.m * r.n);
    std::printf(
        "%-8s %-10s s=%.2f N=%-5d err %.2f | %9.2f us x%.3f | PDL %9.2f us x%.3f | cuBLAS %9.2f us | %4.0f "
        "TFLOP/s, %4.0f GB/s = %.2f of read\n",
        r.matrix.c_str(), r.kernel.c_str(), r.sparsity, r.n, r.worst_error, r.us, r.cublas_us / r.us, r.pdl_us,
        r.cublas_us / r.pdl_us, r.cublas_us, flops / r.us * 1e-6, bytes / r.us * 1e-3,
        bytes / r.us * 1e-3 / bandwidth_);
  }

  void PrintMeans() const {
    for (const auto& [key, sums] : logs_) {
      std::printf("geometric mean %-10s s=%.2f N=%-5d x%.3f\n", std::get<0>(key).c_str(), std::get<1>(key),
                  std::get<2>(key), std::exp(sums.first / sums.second));
    }
  }

  const Settings settings_;
  Gpu gpu_;
  double bandwidth_ = 0;
  Cublas cublas_;
  bool has_cublas_ = false, wrong_ = false;
  Report report_;  // after what its header needs
  std::map<std::tuple<std::string, double, int>, std::pair<double, int>> logs_;
};

}  // namespace
}  // namespace flashllm::bench

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  return flashllm::bench::Bench(flashllm::bench::Parse(argc, argv)).Run();
}
