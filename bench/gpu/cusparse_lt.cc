#include "bench/gpu/cusparse_lt.h"

#include <cuda_runtime_api.h>

#include <cstdio>

#include "bench/gpu/workload.h"

namespace flashllm::bench {
namespace {

// From cusparseLt.h (0.5 and later) and cusparse.h.
constexpr int kHalf = 2, kTranspose = 1, kKeep = 0, kByColumns = 1, kByRows = 2, kTwoOfFour = 0, kComputeFloat = 2;
constexpr int kPruneStrip = 1;  // by rows of W, unconstrained by its columns
constexpr uint32_t kAlignment = 16;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;

int Said(int status, const char* what, int m, int k, int n) {
  if (status != 0) std::printf("cuSPARSELt: %s returned %d for M=%d K=%d N=%d.\n", what, status, m, k, n);
  return status;
}

}  // namespace

bool CusparseLt::Open() {
  int (*init)(Object*);
  int (*get_version)(const Object*, int*);
  if (!library_.Open("cuSPARSELt", "CUSPARSELT_LIBRARY", {"libcusparseLt.so.0", "libcusparseLt.so"}) ||
      !library_.Find("cusparseLtInit", &init) || !library_.Find("cusparseLtGetVersion", &get_version) ||
      !library_.Find("cusparseLtDenseDescriptorInit", &init_dense_) ||
      !library_.Find("cusparseLtStructuredDescriptorInit", &init_structured_) ||
      !library_.Find("cusparseLtMatmulDescriptorInit", &init_operation_) ||
      !library_.Find("cusparseLtMatmulAlgSelectionInit", &init_selection_) ||
      !library_.Find("cusparseLtMatmulPlanInit", &init_plan_) ||
      !library_.Find("cusparseLtMatmulPlanDestroy", &destroy_plan_) ||
      !library_.Find("cusparseLtMatmulGetWorkspace", &get_workspace_) ||
      !library_.Find("cusparseLtSpMMAPrune", &prune_) ||
      !library_.Find("cusparseLtSpMMACompressedSize", &compressed_size_) ||
      !library_.Find("cusparseLtSpMMACompress", &compress_) || !library_.Find("cusparseLtMatmulSearch", &search_) ||
      !library_.Find("cusparseLtMatmul", &matmul_)) {
    return false;
  }
  if (const int status = init(&handle_)) {
    std::printf("cuSPARSELt is left out: it does not start (status %d).\n", status);
    return false;
  }
  Check(cudaMalloc(&workspace_, kWorkspaceBytes), "cuSPARSELt's workspace");
  get_version(&handle_, &version_);
  return true;
}

StructuredProduct::~StructuredProduct() {
  if (planned_) library_.destroy_plan_(&objects_->plan);
}

int StructuredProduct::Prepare() {
  CusparseLt& l = library_;
  Objects& o = *objects_;
  // Yᵀ[m, n] = W[m, k] · (X[n, k])ᵀ: W and X by rows, Yᵀ by columns.
  int status = l.init_structured_(&l.handle_, &o.w, m_, k_, k_, kAlignment, kHalf, kByRows, kTwoOfFour);
  if (status == 0) status = l.init_dense_(&l.handle_, &o.x, n_, k_, k_, kAlignment, kHalf, kByRows);
  if (status == 0) status = l.init_dense_(&l.handle_, &o.y, m_, n_, m_, kAlignment, kHalf, kByColumns);
  if (status == 0) {
    status = l.init_operation_(&l.handle_, &o.operation, kKeep, kTranspose, &o.w, &o.x, &o.y, &o.y, kComputeFloat);
  }
  if (status == 0) status = l.init_selection_(&l.handle_, &o.selection, &o.operation, 0);
  if (status == 0) status = l.init_plan_(&l.handle_, &o.plan, &o.operation, &o.selection);
  planned_ = status == 0;
  if (status == 0) status = l.compressed_size_(&l.handle_, &o.plan, &compressed_bytes_, &buffer_bytes_);
  return Said(status, "planning", m_, k_, n_);
}

int StructuredProduct::Prune(void* dense) {
  return Said(library_.prune_(&library_.handle_, &objects_->operation, dense, dense, kPruneStrip, nullptr), "pruning",
              m_, k_, n_);
}

int StructuredProduct::Compress(const void* pruned, void* compressed) {
  void* buffer = nullptr;
  if (buffer_bytes_ > 0) Check(cudaMalloc(&buffer, buffer_bytes_), "cuSPARSELt's buffer");
  const int status = library_.compress_(&library_.handle_, &objects_->plan, pruned, compressed, buffer, nullptr);
  Check(cudaDeviceSynchronize(), "cuSPARSELt's compression");
  cudaFree(buffer);
  return Said(status, "compression", m_, k_, n_);
}

int StructuredProduct::Search(const void* compressed, const __half* x, __half* y) {
  const float one = 1.0f, zero = 0.0f;
  cudaStream_t stream = nullptr;
  int status = library_.search_(&library_.handle_, &objects_->plan, &one, compressed, x, &zero, y, y,
                                library_.workspace_, &stream, 1);
  // Not Check: the program goes on without a library that fails.
  if (const cudaError_t error = cudaDeviceSynchronize()) {
    std::printf("cuSPARSELt's search failed for M=%d K=%d N=%d: %s.\n", m_, k_, n_, cudaGetErrorString(error));
    return -1;
  }
  size_t needed = 0;
  if (status == 0) status = library_.get_workspace_(&library_.handle_, &objects_->plan, &needed);
  if (status == 0 && needed > kWorkspaceBytes) {
    std::printf("cuSPARSELt is left out for M=%d K=%d N=%d: it asks for a workspace of %zu bytes, of %zu at most.\n",
                m_, k_, n_, needed, kWorkspaceBytes);
    return -1;
  }
  return Said(status, "cusparseLtMatmulSearch", m_, k_, n_);
}

int StructuredProduct::Multiply(const void* compressed, const __half* x, __half* y, cudaStream_t stream) {
  const float one = 1.0f, zero = 0.0f;
  return Said(library_.matmul_(&library_.handle_, &objects_->plan, &one, compressed, x, &zero, y, y,
                               library_.workspace_, &stream, 1),
              "cusparseLtMatmul", m_, k_, n_);
}

}  // namespace flashllm::bench
