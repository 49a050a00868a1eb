// Times SparseMatMul against cublasGemmEx on OPT's four matrices, every output checked, weights rotated through device
// memory.
//   spmm_bench [--model opt-30b] [--matrices fc1,fc2,o,qkv] [--sparsity 0.5,…] [--n 1,8,…] [--clusters 0]
//   [--columns 0|1] [--json FILE] [--commit ID] [--no-cublas]
// docs/kernels.md says what the columns mean.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <string>

#include "bench/spmm/cublas.h"
#include "bench/spmm/list_option.h"
#include "bench/spmm/opt_models.h"
#include "bench/spmm/rotation.h"
#include "bench/spmm/timing.h"
#include "bench/spmm/workload.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::bench {
namespace {

struct Options {
  std::string model = "opt-30b", json, commit = "unknown";
  std::vector<std::string> matrices = {"fc1", "fc2", "o", "qkv"};
  std::vector<double> sparsities = {0.5, 0.6, 0.7, 0.8, 0.9};
  std::vector<int> columns = {8, 16, 32}, clusters = {0};
  int layout = -1;
  bool cublas = true;
};

struct Result {
  std::string matrix;
  int64_t m, k;
  int n, cluster;
  double sparsity, cublas_us, plain_us, pdl_us, stream_bytes, canonical_bytes, worst_error;
  const char* columns;
};

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--no-cublas") {
      options.cublas = false;
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
    else if (name == "--sparsity")
      options.sparsities = Split<double>(value);
    else if (name == "--n")
      options.columns = Split<int>(value);
    else if (name == "--clusters")
      options.clusters = Split<int>(value);
    else if (name == "--columns")
      options.layout = std::atoi(value);
    else if (name == "--json")
      options.json = value;
    else if (name == "--commit")
      options.commit = value;
    else
      std::fprintf(stderr, "%s: unknown option\n", name.c_str()), std::exit(2);
  }
  return options;
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    Check(cudaGetDeviceProperties(&properties_, 0), "device");
    Check(cuda::GetDeviceInfo(0, &device_), "GetDeviceInfo");
    bandwidth_ = ReadBandwidth();
    has_cublas_ = options.cublas && cublas_.Open();
    std::printf("%s, %d SMs, clusters %d/%d/%d, read bandwidth %.0f GB/s, cuBLAS %d\n", properties_.name,
                device_.sm_count, device_.clusters[0], device_.clusters[1], device_.clusters[2], bandwidth_,
                cublas_.version());
  }

  int Run() {
    const auto shapes = LayerShapes(HiddenSize(options_.model));
    for (const std::string& name : options_.matrices) {
      const auto [m, k] = shapes.at(name);
      RunMatrix(name, m, k);
    }
    PrintMeans();
    if (!options_.json.empty()) WriteJson();
    for (const Result& result : results_) {
      if (result.worst_error > 1) return 1;
    }
    return 0;
  }

 private:
  void RunMatrix(const std::string& name, int64_t m, int64_t k) {
    const int most = *std::max_element(options_.columns.begin(), options_.columns.end());
    __half *x, *y;
    Check(cudaMalloc(&x, most * k * 2), "X");
    Check(cudaMalloc(&y, most * m * 2), "Y");
    FillRandom(x, most * k, 42);
    std::map<int, double> cublas_us;
    if (has_cublas_) {
      const Workload dense(m, k, 0.0, 5);
      const Rotation weights(dense.dense, m * k * 2);
      for (int n : options_.columns) {
        cublas_us[n] = TimeLaunches(weights.launches(), [&](int i, cudaStream_t stream) {
          cublas_.Gemm(static_cast<const __half*>(weights.at(i)), x, y, m, k, n, stream);
        });
      }
    }
    for (double sparsity : options_.sparsities) {
      const Workload workload(m, k, sparsity, 1234 + static_cast<uint64_t>(sparsity * 1000));
      for (int cluster : options_.clusters) RunWeight(name, workload, sparsity, cluster, x, y, cublas_us);
    }
    cudaFree(x);
    cudaFree(y);
  }

  void RunWeight(const std::string& name, const Workload& w, double sparsity, int cluster, const __half* x, __half* y,
                 const std::map<int, double>& cublas_us) {
    cuda::WeightPlan plan;
    cuda::PlanOptions plan_options;
    plan_options.cluster = cluster;
    plan_options.columns = options_.layout;
    Check(cuda::MakePlan(w.view(), device_, plan_options, &plan), "MakePlan");
    void *layout, *staging;
    Check(cudaMalloc(&staging, plan.staging_bytes), "staging");
    const cuda::DeviceParts parts{w.bitmap, w.row_offsets, w.values, ValueType::kFloat16};
    Check(cuda::Measure(parts, staging, nullptr, &plan), "Measure");
    Check(cudaMalloc(&layout, plan.layout_bytes), "layout");
    Check(cuda::Convert(plan, parts, staging, layout, nullptr), "Convert");
    Check(cudaDeviceSynchronize(), "Convert");
    cudaFree(staging);
    const Rotation weights(layout, plan.layout_bytes);
    cudaFree(layout);
    for (int n : options_.columns) {
      cuda::MatMulArgs args;
      args.x = x, args.y = y, args.n = n;
      const auto launch = [&](int i, cudaStream_t stream) {
        Check(cuda::Launch(plan, weights.at(i), parts, args, stream), "Launch");
      };
      Check(cudaMemset(y, 0xff, w.m * n * 2), "poison");
      launch(1, nullptr);
      Check(cudaDeviceSynchronize(), "multiplication");
      Result r{name, w.m, w.k, n, plan.cluster, sparsity};
      r.worst_error = WorstError(w, x, y, n);
      r.cublas_us = cublas_us.count(n) ? cublas_us.at(n) : 0;
      r.plain_us = TimeLaunches(weights.launches(), launch);
      args.programmatic = true;
      r.pdl_us = TimeLaunches(weights.launches(), launch);
      r.stream_bytes = static_cast<double>(plan.stream_bytes);
      r.canonical_bytes = w.m * w.k / 8.0 + 2.0 * w.nnz;
      r.columns = plan.columns == cuda::Columns::kWords ? "words" : "halves";
      results_.push_back(r);
      std::printf(
          "%-4s s=%.2f N=%-4d cluster %d, %-6s  err %.2f | %8.2f us x%.2f roof %.2f | PDL %8.2f us x%.2f roof %.2f | "
          "cuBLAS "
          "%8.2f us | bytes %.3f\n",
          name.c_str(), sparsity, n, plan.cluster, r.columns, r.worst_error, r.plain_us, r.cublas_us / r.plain_us,
          Roof(r, r.plain_us), r.pdl_us, r.cublas_us / r.pdl_us, Roof(r, r.pdl_us), r.cublas_us,
          r.stream_bytes / r.canonical_bytes);
      std::fflush(stdout);
    }
  }

  /// Share of the time that reading bitmap and values at full bandwidth would take.
  double Roof(const Result& r, double us) const { return r.canonical_bytes / us * 1e-3 / bandwidth_; }

  void PrintMeans() const {
    std::map<std::pair<int, double>, std::pair<double, double>> logs;
    std::map<std::pair<int, double>, int> counts;
    for (const Result& r : results_) {
      if (r.cublas_us == 0 || options_.clusters.size() > 1) continue;
      auto& sums = logs[{r.n, r.sparsity}];
      sums.first += std::log(r.cublas_us / r.plain_us);
      sums.second += std::log(r.cublas_us / r.pdl_us);
      ++counts[{r.n, r.sparsity}];
    }
    for (const auto& [key, sums] : logs) {
      const int count = counts.at(key);
      std::printf("geometric mean N=%-4d s=%.2f  plain x%.2f  PDL x%.2f\n", key.first, key.second,
                  std::exp(sums.first / count), std::exp(sums.second / count));
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
                 "%d, \"cublas\": %d,\n",
                 date, options_.commit.c_str(), properties_.name, device_.sm_count, driver, runtime, cublas_.version());
    std::fprintf(out, "  \"model\": \"%s\", \"readBandwidthGBs\": %.1f,\n  \"results\": [\n", options_.model.c_str(),
                 bandwidth_);
    for (size_t i = 0; i < results_.size(); ++i) {
      const Result& r = results_[i];
      std::fprintf(out,
                   "    {\"matrix\": \"%s\", \"m\": %lld, \"k\": %lld, \"n\": %d, \"sparsity\": %.2f, \"cluster\": %d, "
                   "\"columns\": \"%s\", "
                   "\"cublasUs\": %.2f, \"plainUs\": %.2f, \"pdlUs\": %.2f, \"streamBytes\": %.0f, \"bitmapBytes\": "
                   "%.0f, \"worstError\": %.3f}%s\n",
                   r.matrix.c_str(), static_cast<long long>(r.m), static_cast<long long>(r.k), r.n, r.sparsity,
                   r.cluster, r.columns, r.cublas_us, r.plain_us, r.pdl_us, r.stream_bytes, r.canonical_bytes,
                   r.worst_error, i + 1 < results_.size() ? "," : "");
    }
    std::fprintf(out, "  ]\n}\n");
    std::fclose(out);
  }

  Options options_;
  cudaDeviceProp properties_ = {};
  cuda::DeviceInfo device_;
  double bandwidth_ = 0;
  Cublas cublas_;
  bool has_cublas_ = false;
  std::vector<Result> results_;
};

}  // namespace
}  // namespace flashllm::bench

int main(int argc, char** argv) { return flashllm::bench::Bench(flashllm::bench::Parse(argc, argv)).Run(); }
