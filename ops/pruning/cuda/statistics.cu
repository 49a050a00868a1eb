// Sums over calibration tokens.
#include "ops/pruning/cuda/elements.cuh"
#include "ops/pruning/cuda/kernels.h"

namespace flashllm::pruning::cuda {
namespace {

constexpr int kStrip = 32;                 // columns of a block
constexpr int kLanes = kThreads / kStrip;  // threads that share a column

/// The sum of value(token, column) over tokens for each column of the block's strip; take(column, sum) gets it.
template <typename Value, typename Take>
__device__ void SumColumns(int64_t count, int64_t columns, const Value& value, const Take& take) {
  __shared__ double parts[kLanes][kStrip];
  const int within = threadIdx.x % kStrip;
  const int lane = threadIdx.x / kStrip;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kStrip + within;
  double sum = 0;
  for (int64_t token = lane; token < count && column < columns; token += kLanes) sum += value(token, column);
  parts[lane][within] = sum;
  __syncthreads();
  if (lane != 0 || column >= columns) return;
  sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += parts[i][within];
  take(column, sum);
}

__global__ void __launch_bounds__(kThreads) ShiftKernel(int64_t count, InputSums sums, const float* x) {
  SumColumns(
      count, sums.features, [=](int64_t token, int64_t k) { return static_cast<double>(x[token * sums.features + k]); },
      [=](int64_t k, double sum) { sums.shift[k] = static_cast<float>(sum / static_cast<double>(count)); });
}

__global__ void __launch_bounds__(kThreads) AddInputsKernel(int64_t count, InputSums sums, float* x) {
  SumColumns(
      count, sums.features,
      [=](int64_t token, int64_t k) {
        float& element = x[token * sums.features + k];
        element -= sums.shift[k];
        return static_cast<double>(element);
      },
      [=](int64_t k, double sum) { sums.sum[k] += sum; });
}

__global__ void __launch_bounds__(kThreads)
    AddColumnsKernel(int64_t count, int64_t columns, const float* y, double* sums) {
  SumColumns(
      count, columns, [=](int64_t token, int64_t k) { return static_cast<double>(y[token * columns + k]); },
      [=](int64_t k, double sum) { sums[k] += sum; });
}

unsigned Strips(int64_t columns) { return static_cast<unsigned>((columns + kStrip - 1) / kStrip); }

}  // namespace

void AddInputs(cudaStream_t stream, int64_t count, bool first, const InputSums& sums, float* x) {
  if (first) ShiftKernel<<<Strips(sums.features), kThreads, 0, stream>>>(count, sums, x);
  AddInputsKernel<<<Strips(sums.features), kThreads, 0, stream>>>(count, sums, x);
}

void AddColumns(cudaStream_t stream, int64_t count, int64_t columns, const float* y, double* sum) {
  AddColumnsKernel<<<Strips(columns), kThreads, 0, stream>>>(count, columns, y, sum);
}

void AddTile(cudaStream_t stream, int64_t rows, int64_t columns, const float* from, double* to, int64_t to_stride) {
  ForElements(stream, rows * columns,
              [=] __device__(int64_t i) { to[i / columns * to_stride + i % columns] += from[i]; });
}

void Moment(cudaStream_t stream, int64_t tokens, bool centred, const InputSums& sums, double* moment) {
  const int64_t n = sums.features;
  const double count = static_cast<double>(tokens);
  ForElements(stream, n * n, [=] __device__(int64_t at) {
    const int64_t row = at / n;
    const int64_t column = at % n;
    const int64_t i = max(row, column);
    const int64_t j = min(row, column);
    const double shift_i = sums.shift[i];
    const double shift_j = sums.shift[j];
    const double whole = sums.sum[i] * shift_j + shift_i * sums.sum[j] + count * shift_i * shift_j;
    moment[at] = sums.gram[i * n + j] + (centred ? -sums.sum[i] * sums.sum[j] / count : whole);
  });
}

void TargetRest(cudaStream_t stream, int64_t outs, int64_t ins, const double* cross, const double* sum,
                const double* moved, double* rest) {
  ForElements(stream, outs * ins,
              [=] __device__(int64_t i) { rest[i] = cross[i] + sum[i / ins] * moved[i % ins] - rest[i]; });
}

}  // namespace flashllm::pruning::cuda
