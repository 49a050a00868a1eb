// The CUDA kernels of calibrated pruning: what is not a matrix product. Launches only; all pointers are to device
// memory, and meanings are those of the functions of Device (ops/pruning/device.h). Reductions add up in a fixed order.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/pruning/device.h"

namespace flashllm::pruning::cuda {

/// Columns of one step of the factorisation, and rows and columns of a block that FactorBlock takes.
constexpr int kFactorBlock = 64;
/// Partial sums of Dot: `scratch` holds as many.
constexpr int kDotBlocks = 1024;
/// What MarkLowest keeps of each group; `words` holds SelectWords(groups) words of 4 bytes.
constexpr int kSelectBins = 256;
constexpr int64_t SelectWords(int64_t groups) { return groups * (kSelectBins + 6); }

// Elements.
void Widen(cudaStream_t stream, int64_t n, const float* from, double* to);
void Add(cudaStream_t stream, int64_t n, double alpha, const double* x, double* y);
void Absolute(cudaStream_t stream, int64_t n, const double* x, double* y);
void Reverse(cudaStream_t stream, int64_t n, double* x);
void ScaleColumns(cudaStream_t stream, int64_t rows, int64_t columns, const double* x, const double* scale, double* y);
void ReadDiagonal(cudaStream_t stream, int64_t n, const double* a, double* diagonal);
void WriteDiagonal(cudaStream_t stream, int64_t n, const double* diagonal, double* a);
void ClearMarked(cudaStream_t stream, int64_t n, const uint8_t* marks, double* x);
void ClearInputs(cudaStream_t stream, int64_t n, int64_t rows, const uint8_t* marks, double* h, double* weight);
/// scratch[kDotBlocks]; the result is scratch[0].
void Dot(cudaStream_t stream, int64_t n, const double* x, const double* y, double* scratch);
/// marks, and words for SelectWords(groups).
void MarkLowest(cudaStream_t stream, int64_t groups, int64_t size, int64_t count, const double* scores, uint8_t* marks,
                uint32_t* words);

// Factorisation.
/// Cholesky factor of the leading [width, width] block of a with rows `stride` apart, width ≤ kFactorBlock. Where it is
/// not positive definite, *failed becomes `at` + 1 if it was 0.
void FactorBlock(cudaStream_t stream, int64_t width, int64_t stride, double* a, int64_t at, int64_t* failed);
/// Zeros above the diagonal.
void ClearUpper(cudaStream_t stream, int64_t n, double* a);
void Identity(cudaStream_t stream, int64_t n, double* a);

// Statistics.
void AddInputs(cudaStream_t stream, int64_t count, bool first, const InputSums& sums, float* x);
/// sum[columns] += rows of y[count, columns].
void AddColumns(cudaStream_t stream, int64_t count, int64_t columns, const float* y, double* sum);
/// to += from, to[rows, columns] with rows to_stride apart, from contiguous.
void AddTile(cudaStream_t stream, int64_t rows, int64_t columns, const float* from, double* to, int64_t to_stride);
void Moment(cudaStream_t stream, int64_t tokens, bool centred, const InputSums& sums, double* moment);
void TargetRest(cudaStream_t stream, int64_t outs, int64_t ins, const double* cross, const double* sum,
                const double* moved, double* rest);

// Methods.
void SparseGptScores(cudaStream_t stream, int64_t rows, int64_t columns, int64_t first, int64_t width,
                     const double* weight, const double* upper, double* scores);
void SparseGptSweep(cudaStream_t stream, int64_t rows, int64_t columns, int64_t first, int64_t width,
                    const uint8_t* marks, const double* upper, double* weight, double* errors);
void NormaliseMoment(cudaStream_t stream, int64_t n, const double* norm, double* h);
void AdmmStep(cudaStream_t stream, int64_t n, double rho, const double* w, const double* z, const double* target,
              double* dual, double* right);
void ConjugateStart(cudaStream_t stream, const ConjugateRows& rows);
void ConjugateStep(cudaStream_t stream, const double* image, const ConjugateRows& rows);

// Forward pass.
void AddBias(cudaStream_t stream, int64_t rows, int64_t columns, const float* bias, float* y);
void Normalise(cudaStream_t stream, int64_t rows, int64_t columns, const float* x, const float* scale,
               const float* shift, float* y);
/// scores[matrices, length, length]: softmax of row i over its first i + 1 columns, zeros after them.
void CausalSoftmax(cudaStream_t stream, int64_t matrices, int64_t length, float* scores);
void Activate(cudaStream_t stream, int64_t n, bool gelu, float* x);
void AddDifference(cudaStream_t stream, int64_t n, const float* a, const float* b, float* y);

}  // namespace flashllm::pruning::cuda
