// Times SparseMatMul against cublasGemmEx, the best algorithm of cuBLASLt's heuristic, and cuSPARSELt's product of a
// weight pruned 2:4, on OPT's four matrices: every output checked, weights rotated through device memory, candidates
// taking turns. bench/spmm/README.md says what the columns mean.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "bench/gpu/cublas.h"
#include "bench/gpu/cublas_lt.h"
#include "bench/gpu/cusparse_lt.h"
#include "bench/gpu/memory.h"
#include "bench/gpu/opt_models.h"
#include "bench/gpu/packed_weights.h"
#include "bench/gpu/report.h"
#include "bench/gpu/rotation.h"
#include "bench/gpu/timing.h"
#include "bench/gpu/workload.h"
#include "bench/options.h"
#include "bench/spmm/means.h"
#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::bench {
namespace {

constexpr double kNotMeasured = NAN;
constexpr double kStructuredSparsity = 0.5;
constexpr int kSame = -1;  // --expected: as many columns as are timed

struct Settings {
  std::string model = "opt-30b", json, commit = "unknown";
  std::vector<std::string> matrices = {"fc1", "fc2", "o", "qkv"};
  std::vector<double> sparsities = {0.5, 0.6, 0.7, 0.8, 0.9};
  std::vector<int> columns = {1, 8, 16, 32, 64}, clusters = {0};
  int layout = -1, columns_kind = -1, team = -1, row_groups = 0, expected = kSame;
  bool cublas = true, peers = true, packed = false;
};

Settings Parse(int argc, char** argv) {
  Settings s;
  Options options("spmm_bench: times SparseMatMul on OPT's matrices. Options:");
  options.Add("--model", &s.model, "opt-1.3b, opt-6.7b, opt-13b, opt-30b (if not given), opt-66b or opt-175b");
  options.Add("--matrices", &s.matrices, "of qkv,o,fc1,fc2 (all)");
  options.Add("--sparsity", &s.sparsities, "shares of zeros, each from 0 to 1 (0.5,0.6,0.7,0.8,0.9)");
  options.Add("--n", &s.columns, "columns of X (1,8,16,32,64)");
  options.Add("--clusters", &s.clusters, "thread blocks that share K: 1, 2, 4, or 0 to choose (0)");
  options.Add("--columns", &s.columns_kind, "kind of columns: 0 halves, 1 words, 2 quads, -1 to choose (-1)");
  options.Add("--layout", &s.layout, "1 columns, 2 jagged, -1 to choose (-1)");
  options.Add("--team", &s.team, "0 a warp, 1 four, 2 four with a tile each, 3 the same by threes, -1 to choose (-1)");
  options.Add("--row-groups", &s.row_groups, "row blocks of a thread block: 1, 2, 3, 4, or 0 to choose (0)");
  options.Add("--expected", &s.expected,
              "columns for which weights are laid out: -1 as many as are timed, 0 for 1 to 32 alike, or a number (-1)");
  options.Add("--json", &s.json, "file to write, anew after every row");
  options.Add("--commit", &s.commit, "what the file says was measured");
  options.AddFlag("--no-cublas", &s.cublas, false, "time nothing beside the kernels");
  options.AddFlag("--packed", &s.packed, true, "no weight is dense, where that is expected to be faster");
  options.AddFlag("--no-peers", &s.peers, false, "leave out cuBLASLt and cuSPARSELt");
  options.Parse(argc, argv);
  const auto shapes = LayerShapes(HiddenSize(s.model));
  for (const std::string& name : s.matrices) {
    options.Require(shapes.count(name) > 0, "--matrices: expected qkv, o, fc1 or fc2");
  }
  options.Require(s.expected >= kSame, "--expected: expected -1, 0 or a number of columns");
  for (int n : s.columns) options.Require(n >= 1, "--n: expected at least 1");
  for (double sparsity : s.sparsities) {
    options.Require(sparsity >= 0 && sparsity <= 1, "--sparsity: expected shares of zeros from 0 to 1");
  }
  return s;
}

/// The libraries that are compared with, as far as they are found.
struct Peers {
  Cublas cublas;
  CublasLt cublas_lt;
  CusparseLt cusparse_lt;
  bool has_cublas = false, has_cublas_lt = false, has_cusparse_lt = false;

  explicit Peers(const Settings& settings) {
    has_cublas = settings.cublas && cublas.Open();
    has_cublas_lt = settings.peers && has_cublas && cublas_lt.Open();
    has_cusparse_lt = settings.peers && has_cublas && cusparse_lt.Open();
  }
};

JsonObject Header(const Settings& settings, const Peers& peers, double bandwidth) {
  cudaDeviceProp properties = {};
  Check(cudaGetDeviceProperties(&properties, 0), "device");
  std::printf("%s, %d SMs, read bandwidth %.0f GB/s, cuBLAS %d, cuBLASLt %d, cuSPARSELt %d\n", properties.name,
              properties.multiProcessorCount, bandwidth, peers.cublas.version(), peers.cublas_lt.version(),
              peers.cusparse_lt.version());
  JsonObject header = DescribeRun(settings.commit, properties);
  header.Integer("cublas", peers.cublas.version()).Integer("cublasLt", peers.cublas_lt.version());
  header.Integer("cusparseLt", peers.cusparse_lt.version()).Text("model", settings.model);
  header.Integer("expectedColumns", settings.expected);
  return header.Number("readBandwidthGBs", bandwidth, 1);
}

class Bench {
 public:
  Bench(const Settings& settings, Peers* peers, double bandwidth)
      : settings_(settings),
        peers_(*peers),
        bandwidth_(bandwidth),
        report_(settings.json, Header(settings, *peers, bandwidth)) {
    gpu_.Prepare();
  }

  /// The process's exit status: 1 where an output was wrong.
  int Run() {
    const int most = CusparseLt::Columns(*std::max_element(settings_.columns.begin(), settings_.columns.end()));
    const auto shapes = LayerShapes(HiddenSize(settings_.model));
    for (const std::string& name : settings_.matrices) RunUnstructured(Matrix(name, shapes.at(name), most));
    means_.Finish("means", &report_);
    // Last: a library that fails costs no other row.
    if (peers_.has_cusparse_lt) {
      for (const std::string& name : settings_.matrices) {
        if (!RunStructured(Matrix(name, shapes.at(name), most))) break;
      }
      structured_means_.Finish("structuredMeans", &report_);
    }
    if (worst_error_ > 1) std::printf("WRONG: an error of %.2f times the bound\n", worst_error_);
    return worst_error_ > 1 ? 1 : 0;
  }

 private:
  /// A matrix of the model, with X and Y for it in device memory.
  struct Matrix {
    std::string name;
    int64_t m, k;
    Memory x_memory, y_memory;
    __half *const x = x_memory.half(), *const y = y_memory.half();

    Matrix(const std::string& name, std::pair<int64_t, int64_t> shape, int columns)
        : name(name), m(shape.first), k(shape.second), x_memory(columns * k * 2), y_memory(columns * m * 2) {
      FillRandom(x, columns * k, 42);
    }
  };

  void RunUnstructured(const Matrix& matrix) {
    std::map<int, CublasLt::Product> chosen;
    for (double sparsity : settings_.sparsities) {
      const Workload weight(matrix.m, matrix.k, sparsity, 1234 + static_cast<uint64_t>(sparsity * 1000));
      const Rotation dense(weight.dense, matrix.m * matrix.k * 2);
      if (chosen.empty() && peers_.has_cublas_lt) chosen = ChooseAlgorithms(matrix, dense);
      for (int cluster : settings_.clusters) RunWeight(matrix, weight, dense, sparsity, cluster, chosen);
    }
  }

  std::map<int, CublasLt::Product> ChooseAlgorithms(const Matrix& matrix, const Rotation& dense) {
    std::map<int, CublasLt::Product> chosen;
    for (int n : settings_.columns) {
      CublasLt::Product product;
      if (peers_.cublas_lt.Choose(matrix.m, matrix.k, n, dense, matrix.x, matrix.y, &product)) chosen[n] = product;
    }
    return chosen;
  }

  void RunWeight(const Matrix& matrix, const Workload& weight, const Rotation& dense, double sparsity, int cluster,
                 const std::map<int, CublasLt::Product>& chosen) {
    cuda::PlanOptions options;
    options.cluster = cluster;
    options.layout = settings_.layout;
    options.packed = settings_.packed;
    options.columns = settings_.columns_kind;
    options.team = settings_.team;
    options.row_groups = settings_.row_groups;
    std::map<std::tuple<bool, cuda::Layout, cuda::Team, int, int, cuda::Columns>, PackedWeights> layouts;
    for (int n : settings_.columns) {
      options.expected_n = settings_.expected == kSame ? n : settings_.expected;
      cuda::WeightPlan plan;
      Check(cuda::MakePlan(weight.view(), gpu_.sparse, options, &plan), "MakePlan");
      const PackedWeights& packed =
          layouts
              .try_emplace({plan.dense, plan.layout, plan.team, plan.cluster, plan.row_groups, plan.columns}, weight,
                           gpu_, options)
              .first->second;
      cuda::MatMulArgs args;
      args.x = matrix.x, args.y = matrix.y, args.n = n;
      cuda::MatMulArgs pdl_args = args;
      pdl_args.programmatic = true;
      const auto ours = [&](const cuda::MatMulArgs& these) {
        return Candidate{LaunchesFor(n, packed.launches()),
                         [&packed, these](int i, cudaStream_t stream) { packed.Multiply(i, these, stream); }};
      };
      std::vector<Candidate> candidates = {ours(args), ours(pdl_args)};
      double worst = 0;
      for (const Candidate& candidate : candidates)
        worst = std::max(worst, ErrorOf(candidate, weight.dense, matrix, n, "SparseMatMul"));
      if (peers_.has_cublas) candidates.push_back(DenseCandidate(matrix, dense, n));
      if (chosen.count(n)) {
        candidates.push_back({LaunchesFor(n, dense.launches()), [&, n](int i, cudaStream_t stream) {
                                peers_.cublas_lt.Multiply(chosen.at(n), dense.at(i), matrix.x, matrix.y, stream);
                              }});
        ErrorOf(candidates.back(), weight.dense, matrix, n, "cuBLASLt");
      }
      std::vector<double> us = TimeInTurns(candidates);
      us.resize(4, kNotMeasured);
      AddRow(matrix, weight, packed, n, sparsity, worst, us);
    }
  }

  Candidate DenseCandidate(const Matrix& matrix, const Rotation& dense, int n) {
    return {LaunchesFor(n, dense.launches()), [&, n](int i, cudaStream_t stream) {
              peers_.cublas.Gemm(static_cast<const __half*>(dense.at(i)), matrix.x, matrix.y, matrix.m, matrix.k, n,
                                 stream);
            }};
  }

  /// Error of one launch into poisoned memory, in units of the bound; a wrong output is said and remembered.
  double ErrorOf(const Candidate& candidate, const __half* weight, const Matrix& matrix, int n, const char* what) {
    Check(cudaMemset(matrix.y, 0xff, matrix.m * n * 2), "poison");
    candidate.launch(1, nullptr);
    Check(cudaDeviceSynchronize(), what);
    const double error = WorstSampledError(weight, matrix.m, matrix.k, matrix.x, matrix.y, n);
    if (error > 1) std::printf("%s is WRONG on %s, N=%d: %.2f times the bound\n", what, matrix.name.c_str(), n, error);
    worst_error_ = std::max(worst_error_, error);
    return error;
  }

  /// `us`: plain, PDL, cublasGemmEx, cuBLASLt.
  void AddRow(const Matrix& matrix, const Workload& weight, const PackedWeights& packed, int n, double sparsity,
              double worst, const std::vector<double>& us) {
    const cuda::WeightPlan& plan = packed.plan();
    const double plain = us[0], pdl = us[1], cublas = us[2], cublas_lt = us[3];
    const double canonical_bytes = matrix.m * matrix.k / 8.0 + 2.0 * weight.nnz;
    const double roof = canonical_bytes / bandwidth_ * 1e-3;  // us
    const char* const kernel = plan.dense                              ? "dense"
                               : packed.IsPrefill(n)                   ? "prefill"
                               : plan.layout == cuda::Layout::kJagged  ? "jagged"
                               : plan.columns == cuda::Columns::kQuads ? "quads"
                               : plan.columns == cuda::Columns::kWords ? "words"
                                                                       : "halves";
    JsonObject row;
    row.Text("matrix", matrix.name).Integer("m", matrix.m).Integer("k", matrix.k).Integer("n", n);
    row.Number("sparsity", sparsity, 2)
        .Integer("cluster", plan.cluster)
        .Text("kernel", kernel)
        .Integer("teamWarps", TeamWarps(plan.team))
        .Integer("rowGroups", plan.row_groups);
    row.Number("cublasUs", cublas, 2).Number("cublasLtUs", cublas_lt, 2);
    row.Number("plainUs", plain, 2).Number("pdlUs", pdl, 2);
    row.Number("streamBytes", plan.stream_bytes, 0).Number("bitmapBytes", canonical_bytes, 0);
    report_.Add("results", row.Number("worstError", worst, 3));
    if (settings_.clusters.size() == 1) {
      means_.Add(n, sparsity, "plain", cublas / plain);
      means_.Add(n, sparsity, "pdl", cublas / pdl);
      means_.Add(n, sparsity, "cublasLt", cublas / cublas_lt);
    }
    std::printf(
        "%-4s s=%.2f N=%-4d %-7s team %d x %d cluster %d err %.2f | plain %8.2f us roof %.2f | PDL %8.2f us roof %.2f",
        matrix.name.c_str(), sparsity, n, kernel, TeamWarps(plan.team), plan.row_groups, plan.cluster, worst, plain,
        roof / plain, pdl, roof / pdl);
    if (peers_.has_cublas) {
      std::printf(" | cuBLAS %8.2f us x%.2f, PDL x%.2f", cublas, cublas / plain, cublas / pdl);
    }
    if (std::isfinite(cublas_lt)) std::printf(" | cuBLASLt %8.2f us", cublas_lt);
    std::printf(" | bytes %.3f\n", plan.stream_bytes / canonical_bytes);
  }

  /// cuSPARSELt on a weight of its own, pruned 2:4, beside cublasGemmEx on the same. False where the library fails.
  bool RunStructured(const Matrix& matrix) {
    const Workload weight(matrix.m, matrix.k, 0.0, 5);
    std::unique_ptr<Rotation> dense;
    for (int n : settings_.columns) {
      StructuredProduct product(peers_.cusparse_lt, matrix.m, matrix.k, CusparseLt::Columns(n));
      if (product.Prepare() != 0) return false;
      if (dense == nullptr) {
        if (product.Prune(weight.dense) != 0) return false;
        dense = std::make_unique<Rotation>(weight.dense, matrix.m * matrix.k * 2);
      }
      if (!RunStructured(matrix, weight, *dense, n, &product)) return false;
    }
    return true;
  }

  bool RunStructured(const Matrix& matrix, const Workload& weight, const Rotation& dense, int n,
                     StructuredProduct* product) {
    const Memory original(product->compressed_bytes());
    if (product->Compress(weight.dense, original.get()) != 0) return false;
    const Rotation copies(original.get(), product->compressed_bytes());
    if (product->Search(original.get(), matrix.x, matrix.y) != 0) return false;
    // Not Check: the program goes on without a library that fails.
    const int status = product->Multiply(copies.at(1), matrix.x, matrix.y, nullptr);
    if (const cudaError_t error = cudaDeviceSynchronize(); status != 0 || error != cudaSuccess) {
      std::printf("cuSPARSELt is left out from %s, N=%d on: %s.\n", matrix.name.c_str(), n, cudaGetErrorString(error));
      return false;
    }
    const std::vector<Candidate> candidates = {{LaunchesFor(n, copies.launches()),
                                                [&](int i, cudaStream_t stream) {
                                                  if (product->Multiply(copies.at(i), matrix.x, matrix.y, stream) != 0)
                                                    std::exit(1);
                                                }},
                                               DenseCandidate(matrix, dense, n)};
    const double error = ErrorOf(candidates[0], weight.dense, matrix, n, "cuSPARSELt");
    const std::vector<double> us = TimeInTurns(candidates);
    // Whether the copies are what is read: if the original were, nothing would be left of it.
    Check(cudaMemset(original.get(), 0, product->compressed_bytes()), "clearing a weight");
    Check(cudaMemset(matrix.y, 0xff, matrix.m * n * 2), "poison");
    candidates[0].launch(1, nullptr);
    Check(cudaDeviceSynchronize(), "cuSPARSELt");
    const bool rotated = WorstSampledError(weight.dense, matrix.m, matrix.k, matrix.x, matrix.y, n) <= 1;
    JsonObject row;
    row.Text("matrix", matrix.name).Integer("m", matrix.m).Integer("k", matrix.k).Integer("n", n);
    row.Number("cublasUs", us[1], 2).Number("cusparseLtUs", us[0], 2);
    row.Integer("compressedBytes", product->compressed_bytes()).Boolean("rotated", rotated);
    report_.Add("structured", row.Number("worstError", error, 3));
    structured_means_.Add(n, kStructuredSparsity, "cusparseLt", us[1] / us[0]);
    std::printf("%-4s 2:4    N=%-4d cuSPARSELt err %.2f | %8.2f us x%.2f%s | cuBLAS %8.2f us\n", matrix.name.c_str(), n,
                error, us[0], us[1] / us[0], rotated ? "" : " (its copies are not read)", us[1]);
    return true;
  }

  const Settings settings_;
  Peers& peers_;
  const double bandwidth_;
  Gpu gpu_;
  Report report_;
  Means means_, structured_means_;
  double worst_error_ = 0;
};

}  // namespace
}  // namespace flashllm::bench

int main(int argc, char** argv) {
  using namespace flashllm::bench;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const Settings settings = Parse(argc, argv);
  Peers peers(settings);
  return Bench(settings, &peers, ReadBandwidth()).Run();
}
