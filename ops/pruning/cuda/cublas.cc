#include "ops/pruning/cuda/cublas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "ops/pruning/workers.h"

namespace flashllm::pruning::cuda {
namespace {

constexpr int kPedanticMath = 2;  // CUBLAS_PEDANTIC_MATH: no TF32, whatever the environment says

void* Open() {
  std::string tried;
  const char* const named = std::getenv("CUBLAS_LIBRARY");
  for (const char* name : {named, "libcublas.so.13", "libcublas.so.12"}) {
    if (name == nullptr || *name == '\0') continue;
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  throw PruningError("cuBLAS was not found (" + tried +
                     "): install CUDA's libcublas, or set CUBLAS_LIBRARY to the path of libcublas.so");
}

void* Symbol(void* library, const char* name) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr)
    throw PruningError(std::string("the cuBLAS that was found lacks ") + name + ": version 12 or 13 is expected");
  return symbol;
}

/// Calls a function of cuBLAS with exactly these types of arguments.
template <typename... Arguments>
void Call(const char* name, void* function, Arguments... arguments) {
  const int status = reinterpret_cast<int (*)(Arguments...)>(function)(arguments...);
  if (status != 0) throw PruningError(std::string(name) + " of cuBLAS failed with status " + std::to_string(status));
}

}  // namespace

Cublas::Cublas(cudaStream_t stream) : library_(Open()) {
  sgemm_ = Symbol(library_, "cublasSgemm_v2");
  dgemm_ = Symbol(library_, "cublasDgemm_v2");
  sgemm_batched_ = Symbol(library_, "cublasSgemmStridedBatched");
  dtrsm_ = Symbol(library_, "cublasDtrsm_v2");
  dsyrk_ = Symbol(library_, "cublasDsyrk_v2");
  void* const set_stream = Symbol(library_, "cublasSetStream_v2");
  void* const set_math_mode = Symbol(library_, "cublasSetMathMode");
  Symbol(library_, "cublasDestroy_v2");
  Call("cublasCreate", Symbol(library_, "cublasCreate_v2"), &handle_);
  Call("cublasSetStream", set_stream, handle_, stream);
  Call("cublasSetMathMode", set_math_mode, handle_, kPedanticMath);
}

Cublas::~Cublas() { reinterpret_cast<int (*)(void*)>(dlsym(library_, "cublasDestroy_v2"))(handle_); }

void Cublas::Sgemm(CublasOperation op_a, CublasOperation op_b, int m, int n, int k, float alpha, const float* a,
                   int lda, const float* b, int ldb, float beta, float* c, int ldc) const {
  Call("cublasSgemm", sgemm_, handle_, int{op_a}, int{op_b}, m, n, k, static_cast<const float*>(&alpha), a, lda, b, ldb,
       static_cast<const float*>(&beta), c, ldc);
}

void Cublas::Dgemm(CublasOperation op_a, CublasOperation op_b, int m, int n, int k, double alpha, const double* a,
                   int lda, const double* b, int ldb, double beta, double* c, int ldc) const {
  Call("cublasDgemm", dgemm_, handle_, int{op_a}, int{op_b}, m, n, k, static_cast<const double*>(&alpha), a, lda, b,
       ldb, static_cast<const double*>(&beta), c, ldc);
}

void Cublas::SgemmBatched(CublasOperation op_a, CublasOperation op_b, int m, int n, int k, float alpha, const float* a,
                          int lda, int64_t stride_a, const float* b, int ldb, int64_t stride_b, float beta, float* c,
                          int ldc, int64_t stride_c, int batch) const {
  using Stride = long long;  // NOLINT: as cuBLAS declares it
  Call("cublasSgemmStridedBatched", sgemm_batched_, handle_, int{op_a}, int{op_b}, m, n, k,
       static_cast<const float*>(&alpha), a, lda, static_cast<Stride>(stride_a), b, ldb, static_cast<Stride>(stride_b),
       static_cast<const float*>(&beta), c, ldc, static_cast<Stride>(stride_c), batch);
}

void Cublas::Dtrsm(CublasSide side, CublasFill fill, CublasOperation op, CublasDiagonal diagonal, int m, int n,
                   double alpha, const double* a, int lda, double* b, int ldb) const {
  Call("cublasDtrsm", dtrsm_, handle_, int{side}, int{fill}, int{op}, int{diagonal}, m, n,
       static_cast<const double*>(&alpha), a, lda, b, ldb);
}

void Cublas::Dsyrk(CublasFill fill, CublasOperation op, int n, int k, double alpha, const double* a, int lda,
                   double beta, double* c, int ldc) const {
  Call("cublasDsyrk", dsyrk_, handle_, int{fill}, int{op}, n, k, static_cast<const double*>(&alpha), a, lda,
       static_cast<const double*>(&beta), c, ldc);
}

}  // namespace flashllm::pruning::cuda
