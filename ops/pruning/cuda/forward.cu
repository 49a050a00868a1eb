// The layer's forward pass but for its products.
#include "ops/pruning/cuda/elements.cuh"
#include "ops/pruning/cuda/kernels.h"

namespace flashllm::pruning::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) SoftmaxKernel(int64_t rows, int64_t length, float* scores) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float* x = scores + row * length;
    const int64_t seen = row % length + 1;
    float most = x[0];
    for (int64_t i = threadIdx.x; i < seen; i += kThreads) most = fmaxf(most, x[i]);
    most = BlockMax(most);
    float sum = 0;
    for (int64_t i = threadIdx.x; i < seen; i += kThreads) {
      x[i] = expf(x[i] - most);
      sum += x[i];
    }
    const float scale = 1.0f / BlockSum(sum);
    for (int64_t i = threadIdx.x; i < length; i += kThreads) x[i] = i < seen ? x[i] * scale : 0.0f;
  }
}

}  // namespace

void AddBias(cudaStream_t stream, int64_t rows, int64_t columns, const float* bias, float* y) {
  ForElements(stream, rows * columns, [=] __device__(int64_t i) { y[i] += bias[i % columns]; });
}

void Normalise(cudaStream_t stream, int64_t rows, int64_t columns, const float* from, const float* scale,
               const float* shift, float* to) {
  const double n = static_cast<double>(columns);
  ForRows(stream, rows, [=] __device__(int64_t row) {
    const float* x = from + row * columns;
    float* y = to + row * columns;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) sum += x[i];
    const float mean = static_cast<float>(BlockSum(sum) / n);
    double squares = 0;
    for (int64_t i = threadIdx.x; i < columns; i += kThreads)
      squares += static_cast<double>(x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / sqrtf(static_cast<float>(BlockSum(squares) / n) + kNormEpsilon);
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      const float value = (x[i] - mean) * factor;
      y[i] = scale != nullptr ? value * scale[i] + shift[i] : value;
    }
  });
}

void CausalSoftmax(cudaStream_t stream, int64_t matrices, int64_t length, float* scores) {
  const int64_t rows = matrices * length;
  SoftmaxKernel<<<Blocks(rows, 1), kThreads, 0, stream>>>(rows, length, scores);
}

void Activate(cudaStream_t stream, int64_t n, bool gelu, float* x) {
  if (gelu) {
    ForElements(stream, n, [=] __device__(int64_t i) { x[i] *= 0.5f * (1 + erff(x[i] * 0.70710678f)); });
  } else {
    ForElements(stream, n, [=] __device__(int64_t i) { x[i] = x[i] > 0 ? x[i] : 0.0f; });
  }
}

void AddDifference(cudaStream_t stream, int64_t n, const float* a, const float* b, float* y) {
  ForElements(stream, n, [=] __device__(int64_t i) { y[i] += a[i] - b[i]; });
}

}  // namespace flashllm::pruning::cuda
