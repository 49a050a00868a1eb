// One-shot pruning of one linear, from its weights and what is known of its inputs.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "ops/pruning/aligned.h"
#include "ops/pruning/dense.h"
#include "ops/pruning/input_statistics.h"
#include "ops/sparse-matmul/format.h"
#include "ops/sparse-matmul/pruning.h"

namespace flashllm::pruning {

enum class Method : uint8_t {
  kMagnitude,  // |w|
  kWanda,      // |w| · ‖x‖ within each output row (arXiv 2306.11695)
  kSparseGpt,  // arXiv 2301.00774
  kAdmm,       // arXiv 2401.02938
};

struct PruneOptions {
  Method method = Method::kSparseGpt;
  double sparsity = 0.5;                  // 0 to below 1
  PruneScope scope = PruneScope::kLayer;  // of kMagnitude; kWanda is by row, the others by their own rule
  bool correct_bias = true;               // methods see centred inputs, and the bias takes up (W − Ŵ)·mean; else
                                          // it stays as it is
  double damping = 0.01;                  // kSparseGpt and Retarget(): of the mean diagonal
  int64_t block_columns = 128;            // kSparseGpt
  int iterations = 20;                    // kAdmm
  int refinement = 10;                    // steps of conjugate gradients on the support that was found; 0: none
};

/// A linear Y = X·Wᵀ + b: weights [out_features, in_features].
struct Linear {
  int64_t out_features = 0;
  int64_t in_features = 0;
  Floats weight;
  Floats bias;                                  // empty for none
  ValueType weight_type = ValueType::kFloat32;  // what both are stored in
  ValueType bias_type = ValueType::kFloat32;
};

/// The weight in float64. Throws PruningError where it is not finite.
Matrix WeightOnDevice(Device& device, const Linear& linear);

/// Whether a linear has at least as many zeros as a sparsity asks for: pruning leaves it alone.
bool IsSparse(const Linear& linear, double sparsity);

struct PruneReport {
  int64_t nnz = 0;
  /// ‖X·(Ŵ − W)ᵀ + (b̂ − b)‖ / ‖X·Wᵀ‖ over the calibration tokens, of what is stored.
  double relative_error = 0;
  /// The linear had at least as many zeros as asked for, and was left alone.
  bool already_sparse = false;
};

/// Called with the fraction done, on the calling thread.
using Progress = std::function<void(double)>;

/// Prunes `linear` in place to round(sparsity · elements) zeros (by rows: of each row), or leaves it alone where it had
/// as many. There can be more where inputs are always zero (centred: constant), whose weights kSparseGpt, kAdmm and
/// refinement clear. What is kept is rounded to the types that are stored (and may become zero there). Throws
/// PruningError.
PruneReport PruneLinear(Device& device, const InputStatistics& inputs, const PruneOptions& options, Linear* linear,
                        const Progress& progress = {});

/// Sets the round(sparsity · elements) elements with the lowest scores to zero, within the whole matrix or each row; of
/// equal scores, the first in row-major order.
void DropLowest(Device& device, const Matrix& scores, double sparsity, PruneScope scope, Matrix* weight);

/// The methods proper: weight is changed in place, h = Σ x xᵀ of the inputs that they see (its scale does not matter).
/// Those that take h itself, not a reference, work in its memory.
void PruneMagnitude(Device& device, double sparsity, PruneScope scope, Matrix* weight);
void PruneWanda(Device& device, const Matrix& h, double sparsity, Matrix* weight);
void PruneSparseGpt(Device& device, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress);
void PruneAdmm(Device& device, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress);

/// Steps of conjugate gradients, for each row on the elements that are not zero, on ‖(weight − target)·h^½‖². None
/// makes it larger. Works in h's memory.
void Refine(Device& device, Matrix h, const Matrix& target, int steps, Matrix* weight);

}  // namespace flashllm::pruning
