// Elements of vectors and matrices, and the factorisation's blocks.
#include "ops/pruning/cuda/elements.cuh"
#include "ops/pruning/cuda/kernels.h"

namespace flashllm::pruning::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) DotKernel(int64_t n, const double* x, const double* y, double* parts) {
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    sum += x[i] * y[i];
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) SumKernel(double* parts) {
  double sum = 0;
  for (int i = threadIdx.x; i < kDotBlocks; i += kThreads) sum += parts[i];
  sum = BlockSum(sum);
  if (threadIdx.x == 0) parts[0] = sum;
}

/// Right-looking, in shared memory, one block of kFactorBlock² / 16 threads.
__global__ void __launch_bounds__(kThreads)
    FactorKernel(int64_t width, int64_t stride, double* a, int64_t at, int64_t* failed) {
  __shared__ double block[kFactorBlock][kFactorBlock + 1];
  const int n = static_cast<int>(width);
  for (int i = threadIdx.x; i < n * n; i += kThreads) block[i / n][i % n] = a[i / n * stride + i % n];
  __syncthreads();
  for (int k = 0; k < n; ++k) {
    const double pivot = block[k][k];
    if (!(pivot > 0)) {  // also for NaN; the same for all threads
      if (threadIdx.x == 0 && *failed == 0) *failed = at + k + 1;
      return;
    }
    const double root = sqrt(pivot);
    __syncthreads();
    for (int i = k + threadIdx.x; i < n; i += kThreads) block[i][k] = i == k ? root : block[i][k] / root;
    __syncthreads();
    const int rest = n - k - 1;
    for (int e = threadIdx.x; e < rest * rest; e += kThreads) {
      const int i = k + 1 + e / rest;
      const int j = k + 1 + e % rest;
      if (j <= i) block[i][j] -= block[i][k] * block[j][k];
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < n * n; i += kThreads) {
    if (i % n <= i / n) a[i / n * stride + i % n] = block[i / n][i % n];
  }
}

}  // namespace

void Widen(cudaStream_t stream, int64_t n, const float* from, double* to) {
  ForElements(stream, n, [=] __device__(int64_t i) { to[i] = from[i]; });
}

void Add(cudaStream_t stream, int64_t n, double alpha, const double* x, double* y) {
  ForElements(stream, n, [=] __device__(int64_t i) { y[i] += alpha * x[i]; });
}

void Absolute(cudaStream_t stream, int64_t n, const double* x, double* y) {
  ForElements(stream, n, [=] __device__(int64_t i) { y[i] = fabs(x[i]); });
}

void Reverse(cudaStream_t stream, int64_t n, double* x) {
  ForElements(stream, n / 2, [=] __device__(int64_t i) {
    const double other = x[n - 1 - i];
    x[n - 1 - i] = x[i];
    x[i] = other;
  });
}

void ScaleColumns(cudaStream_t stream, int64_t rows, int64_t columns, const double* x, const double* scale, double* y) {
  ForElements(stream, rows * columns, [=] __device__(int64_t i) { y[i] = x[i] * scale[i % columns]; });
}

void ReadDiagonal(cudaStream_t stream, int64_t n, const double* a, double* diagonal) {
  ForElements(stream, n, [=] __device__(int64_t i) { diagonal[i] = a[i * n + i]; });
}

void WriteDiagonal(cudaStream_t stream, int64_t n, const double* diagonal, double* a) {
  ForElements(stream, n, [=] __device__(int64_t i) { a[i * n + i] = diagonal[i]; });
}

void ClearMarked(cudaStream_t stream, int64_t n, const uint8_t* marks, double* x) {
  ForElements(stream, n, [=] __device__(int64_t i) {
    if (marks[i]) x[i] = 0;
  });
}

void ClearInputs(cudaStream_t stream, int64_t n, int64_t rows, const uint8_t* marks, double* h, double* weight) {
  ForElements(stream, n * n, [=] __device__(int64_t i) {
    if (marks[i / n] || marks[i % n]) h[i] = 0;
  });
  ForElements(stream, rows * n, [=] __device__(int64_t i) {
    if (marks[i % n]) weight[i] = 0;
  });
}

void Dot(cudaStream_t stream, int64_t n, const double* x, const double* y, double* scratch) {
  DotKernel<<<kDotBlocks, kThreads, 0, stream>>>(n, x, y, scratch);
  SumKernel<<<1, kThreads, 0, stream>>>(scratch);
}

void FactorBlock(cudaStream_t stream, int64_t width, int64_t stride, double* a, int64_t at, int64_t* failed) {
  FactorKernel<<<1, kThreads, 0, stream>>>(width, stride, a, at, failed);
}

void ClearUpper(cudaStream_t stream, int64_t n, double* a) {
  ForElements(stream, n * n, [=] __device__(int64_t i) {
    if (i % n > i / n) a[i] = 0;
  });
}

void Identity(cudaStream_t stream, int64_t n, double* a) {
  ForElements(stream, n * n, [=] __device__(int64_t i) { a[i] = i % n == i / n ? 1 : 0; });
}

}  // namespace flashllm::pruning::cuda
