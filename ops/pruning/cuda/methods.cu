// Steps of SparseGPT and ADMM.
#include "ops/pruning/cuda/elements.cuh"
#include "ops/pruning/cuda/kernels.h"

namespace flashllm::pruning::cuda {
namespace {

constexpr int kWarp = 32;

/// A warp takes a row. Columns from the left to the right: what one loses goes to those on its right, all at once.
__global__ void __launch_bounds__(kThreads)
    SweepKernel(int64_t rows, int64_t columns, int64_t first, int64_t width, const uint8_t* marks, const double* upper,
                double* weight, double* errors) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; row < rows; row += warps) {
    double* w = weight + row * columns + first;
    for (int64_t i = 0; i < width; ++i) {
      const bool drop = marks[row * width + i] != 0;
      double error = 0;
      if (drop) {
        const double* factors = upper + (first + i) * columns + first;
        error = w[i] / factors[i];
        for (int64_t j = i + 1 + lane; j < width; j += kWarp) w[j] -= error * factors[j];
      }
      __syncwarp();  // the next column's weight may be another lane's work; w[i] has been read by all
      if (lane == 0) {
        errors[row * width + i] = error;
        if (drop) w[i] = 0;
      }
    }
  }
}

}  // namespace

void SparseGptScores(cudaStream_t stream, int64_t rows, int64_t columns, int64_t first, int64_t width,
                     const double* weight, const double* upper, double* scores) {
  ForElements(stream, rows * width, [=] __device__(int64_t at) {
    const int64_t i = first + at % width;
    const double scaled = weight[at / width * columns + i] / upper[i * (columns + 1)];
    scores[at] = scaled * scaled;
  });
}

void SparseGptSweep(cudaStream_t stream, int64_t rows, int64_t columns, int64_t first, int64_t width,
                    const uint8_t* marks, const double* upper, double* weight, double* errors) {
  SweepKernel<<<Blocks(rows, kThreads / kWarp), kThreads, 0, stream>>>(rows, columns, first, width, marks, upper,
                                                                       weight, errors);
}

void NormaliseMoment(cudaStream_t stream, int64_t n, const double* norm, double* h) {
  ForElements(stream, n * n, [=] __device__(int64_t at) {
    const int64_t i = at / n;
    const int64_t j = at % n;
    const double scale = norm[i] * norm[j];
    h[at] = scale > 0 ? h[at] / scale : (i == j ? 1 : 0);
  });
}

void AdmmStep(cudaStream_t stream, int64_t n, double rho, const double* w, const double* z, const double* target,
              double* dual, double* right) {
  ForElements(stream, n, [=] __device__(int64_t i) {
    const double apart = dual[i] + w[i] - z[i];
    dual[i] = apart;
    right[i] = target[i] + rho * (z[i] - apart);
  });
}

void ConjugateStart(cudaStream_t stream, const ConjugateRows& rows) {
  ForRows(stream, rows.rows, [=] __device__(int64_t row) {
    double squares = 0;
    for (int64_t k = threadIdx.x; k < rows.columns; k += kThreads) {
      const int64_t at = row * rows.columns + k;
      const bool kept = rows.z[at] != 0;
      const double residual = kept ? rows.residual[at] : 0;
      rows.support[at] = kept;
      rows.residual[at] = rows.direction[at] = residual;
      squares += residual * residual;
    }
    squares = BlockSum(squares);
    if (threadIdx.x == 0) rows.squared[row] = squares;
  });
}

void ConjugateStep(cudaStream_t stream, const double* image, const ConjugateRows& rows) {
  ForRows(stream, rows.rows, [=] __device__(int64_t row) {
    const int64_t first = row * rows.columns;
    const int64_t end = first + rows.columns;
    const double square = rows.squared[row];
    double curvature = 0;
    for (int64_t at = first + threadIdx.x; at < end; at += kThreads) curvature += rows.direction[at] * image[at];
    curvature = BlockSum(curvature);
    if (square <= 0 || curvature <= 0) return;  // the same for the whole block
    const double length = square / curvature;
    double next = 0;
    for (int64_t at = first + threadIdx.x; at < end; at += kThreads) {
      rows.z[at] += length * rows.direction[at];
      if (!rows.support[at]) continue;
      const double residual = rows.residual[at] - length * image[at];
      rows.residual[at] = residual;
      next += residual * residual;
    }
    next = BlockSum(next);
    const double ratio = next / square;
    for (int64_t at = first + threadIdx.x; at < end; at += kThreads) {
      rows.direction[at] = rows.residual[at] + ratio * rows.direction[at];
    }
    if (threadIdx.x == 0) rows.squared[row] = next;
  });
}

}  // namespace flashllm::pruning::cuda
