#include "bench/gpu/cublas_lt.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "bench/gpu/timing.h"
#include "bench/gpu/workload.h"

namespace flashllm::bench {
namespace {

// From cublasLt.h, whose values are part of its binary interface.
constexpr int kHalf = 2, kFloat = 0, kComputeFloat = 68, kTranspose = 1;
constexpr int kTransposeA = 3;         // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kMaxWorkspaceBytes = 1;  // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
struct HeuristicResult {               // cublasLtMatmulHeuristicResult_t
  std::array<uint64_t, 8> algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 96, "cuBLASLt's binary interface");

constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int kProposals = 8;

}  // namespace

bool CublasLt::Open() {
  int (*create)(void**);
  int (*create_preference)(void**);
  int (*set_preference)(void*, int, const void*, size_t);
  size_t (*get_version)();
  if (!library_.Open("cuBLASLt", "CUBLASLT_LIBRARY", {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) ||
      !library_.Find("cublasLtCreate", &create) || !library_.Find("cublasLtGetVersion", &get_version) ||
      !library_.Find("cublasLtMatmulPreferenceCreate", &create_preference) ||
      !library_.Find("cublasLtMatmulPreferenceSetAttribute", &set_preference) ||
      !library_.Find("cublasLtMatmulDescCreate", &create_operation_) ||
      !library_.Find("cublasLtMatmulDescSetAttribute", &set_operation_) ||
      !library_.Find("cublasLtMatrixLayoutCreate", &create_layout_) ||
      !library_.Find("cublasLtMatmulAlgoGetHeuristic", &get_heuristic_) || !library_.Find("cublasLtMatmul", &matmul_)) {
    return false;
  }
  int status = create(&handle_);
  if (status == 0) status = create_preference(&preference_);
  if (status == 0) status = set_preference(preference_, kMaxWorkspaceBytes, &kWorkspaceBytes, sizeof(kWorkspaceBytes));
  if (status != 0) {
    std::printf("cuBLASLt is left out: it does not start (status %d).\n", status);
    return false;
  }
  Check(cudaMalloc(&workspace_, kWorkspaceBytes), "cuBLASLt's workspace");
  version_ = static_cast<int>(get_version());
  return true;
}

bool CublasLt::Describe(Product* p) {
  // Column-major, as cuBLAS sees it: Yᵀ[m, n] = (Wᵀ[k, m])ᵀ · Xᵀ[k, n].
  return create_operation_(&p->operation, kComputeFloat, kFloat) == 0 &&
         set_operation_(p->operation, kTransposeA, &kTranspose, sizeof(kTranspose)) == 0 &&
         create_layout_(&p->layouts[0], kHalf, p->k, p->m, p->k) == 0 &&
         create_layout_(&p->layouts[1], kHalf, p->k, p->n, p->k) == 0 &&
         create_layout_(&p->layouts[2], kHalf, p->m, p->n, p->m) == 0;
}

std::vector<std::array<uint64_t, 8>> CublasLt::Propose(const Product& p) {
  HeuristicResult results[kProposals];
  int count = 0;
  std::vector<std::array<uint64_t, 8>> algorithms;
  if (get_heuristic_(handle_, p.operation, p.layouts[0], p.layouts[1], p.layouts[2], p.layouts[2], preference_,
                     kProposals, results, &count) != 0) {
    return algorithms;
  }
  for (int i = 0; i < count; ++i) {
    if (results[i].state == 0) algorithms.push_back(results[i].algorithm);
  }
  return algorithms;
}

bool CublasLt::Choose(int m, int k, int n, const Rotation& w, const __half* x, __half* y, Product* product) {
  constexpr int kRounds = 3;
  product->m = m, product->k = k, product->n = n;
  std::vector<Product> proposals;
  std::vector<Candidate> candidates;
  if (Describe(product)) {
    for (const auto& algorithm : Propose(*product)) {
      product->algorithm = algorithm;
      if (Try(*product, w.at(0), x, y, nullptr) == 0) proposals.push_back(*product);
    }
  }
  Check(cudaDeviceSynchronize(), "cuBLASLt");
  if (proposals.empty()) {
    std::printf("cuBLASLt is left out for M=%d K=%d N=%d: its heuristic proposes no algorithm that works.\n", m, k, n);
    return false;
  }
  for (const Product& proposal : proposals) {
    candidates.push_back(
        {LaunchesFor(n, w.launches()), [&](int i, cudaStream_t stream) { Multiply(proposal, w.at(i), x, y, stream); }});
  }
  const std::vector<double> times = TimeInTurns(candidates, kRounds);
  *product = proposals[std::min_element(times.begin(), times.end()) - times.begin()];
  return true;
}

int CublasLt::Try(const Product& p, const void* w, const __half* x, __half* y, cudaStream_t stream) const {
  const float one = 1.0f, zero = 0.0f;
  return matmul_(handle_, p.operation, &one, w, p.layouts[0], x, p.layouts[1], &zero, y, p.layouts[2], y, p.layouts[2],
                 p.algorithm.data(), workspace_, kWorkspaceBytes, stream);
}

void CublasLt::Multiply(const Product& p, const void* w, const __half* x, __half* y, cudaStream_t stream) const {
  const int status = Try(p, w, x, y, stream);
  if (status == 0) return;
  std::fprintf(stderr, "cublasLtMatmul returned %d for M=%d K=%d N=%d\n", status, p.m, p.k, p.n);
  std::exit(1);
}

}  // namespace flashllm::bench
