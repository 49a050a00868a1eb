#include "bench/spmm/cublas.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace flashllm::bench {

bool Cublas::Open() {
  const char* const named = std::getenv("CUBLAS_LIBRARY");
  void* library = nullptr;
  for (const char* name : {named, "libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
    if (library == nullptr && name != nullptr) library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
  }
  if (library == nullptr) {
    std::fprintf(stderr, "cuBLAS was not found (%s). Set CUBLAS_LIBRARY to the path of libcublas.so.\n", dlerror());
    return false;
  }
  const auto create = reinterpret_cast<int (*)(void**)>(dlsym(library, "cublasCreate_v2"));
  const auto get_version = reinterpret_cast<int (*)(void*, int*)>(dlsym(library, "cublasGetVersion_v2"));
  set_stream_ = dlsym(library, "cublasSetStream_v2");
  gemm_ = dlsym(library, "cublasGemmEx");
  if (create == nullptr || get_version == nullptr || set_stream_ == nullptr || gemm_ == nullptr ||
      create(&handle_) != 0) {
    std::fprintf(stderr, "cuBLAS was found, but could not be started.\n");
    return false;
  }
  get_version(handle_, &version_);
  return true;
}

void Cublas::Gemm(const __half* w, const __half* x, __half* y, int m, int k, int n, cudaStream_t stream) {
  using SetStream = int (*)(void*, cudaStream_t);
  using GemmEx = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int,
                         const void*, void*, int, int, int, int);
  constexpr int kTranspose = 1, kKeep = 0, kHalf = 2, kComputeFloat = 68, kDefaultAlgorithm = -1;
  const float one = 1.0f, zero = 0.0f;
  int status = reinterpret_cast<SetStream>(set_stream_)(handle_, stream);
  if (status == 0) {
    status = reinterpret_cast<GemmEx>(gemm_)(handle_, kTranspose, kKeep, m, n, k, &one, w, kHalf, k, x, kHalf, k, &zero,
                                             y, kHalf, m, kComputeFloat, kDefaultAlgorithm);
  }
  if (status == 0) return;
  std::fprintf(stderr, "cublasGemmEx returned %d for M=%d K=%d N=%d\n", status, m, k, n);
  std::exit(1);
}

}  // namespace flashllm::bench
