#include "bench/gpu/cublas.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "bench/gpu/workload.h"

namespace flashllm::bench {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA recommends for Hopper

}  // namespace

bool Cublas::Open() {
  int (*create)(void**);
  int (*get_version)(void*, int*);
  if (!library_.Open("cuBLAS", "CUBLAS_LIBRARY", {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) ||
      !library_.Find("cublasCreate_v2", &create) || !library_.Find("cublasGetVersion_v2", &get_version) ||
      !library_.Find("cublasSetStream_v2", &set_stream_) || !library_.Find("cublasSetWorkspace_v2", &set_workspace_) ||
      !library_.Find("cublasGemmEx", &gemm_)) {
    return false;
  }
  if (const int status = create(&handle_)) {
    std::printf("cuBLAS is left out: cublasCreate returned %d.\n", status);
    return false;
  }
  get_version(handle_, &version_);
  Check(cudaMalloc(&workspace_, kWorkspaceBytes), "cuBLAS's workspace");
  return true;
}

void Cublas::Gemm(const __half* w, const __half* x, __half* y, int m, int k, int n, cudaStream_t stream) {
  constexpr int kTranspose = 1, kKeep = 0, kHalf = 2, kComputeFloat = 68, kDefaultAlgorithm = -1;
  const float one = 1.0f, zero = 0.0f;
  int status = set_stream_(handle_, stream);
  // A captured call without a workspace of the user's allocates one inside the graph.
  if (status == 0) status = set_workspace_(handle_, workspace_, kWorkspaceBytes);
  if (status == 0) {
    status = gemm_(handle_, kTranspose, kKeep, m, n, k, &one, w, kHalf, k, x, kHalf, k, &zero, y, kHalf, m,
                   kComputeFloat, kDefaultAlgorithm);
  }
  if (status == 0) return;
  std::fprintf(stderr, "cublasGemmEx returned %d for M=%d K=%d N=%d\n", status, m, k, n);
  std::exit(1);
}

}  // namespace flashllm::bench
