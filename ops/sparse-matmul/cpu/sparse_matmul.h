// SparseMatMul on the CPU: Y[N, M] = act(X[N, K] · Wᵀ + bias) + residual, accumulated in float32.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/sparse-matmul/format.h"

namespace flashllm::cpu {

/// kAvx2: with FMA and F16C. kAvx512: F, BW, VL, DQ, VBMI2. kNeon: AArch64's.
enum class Isa { kReference, kAvx2, kAvx512, kNeon };

/// The instruction sets that this machine runs, the best last; by CPUID (and XGETBV) where they differ.
std::vector<Isa> SupportedIsas();
/// The last of them.
Isa DetectIsa();
const char* IsaName(Isa isa);

enum class ElementType : uint8_t { kFloat32, kFloat16 };  // of X, bias, residual and Y
enum class Activation : uint8_t { kNone, kRelu };

/// One call. X is [n, in_features], Y and residual are [n, out_features], row-major and contiguous; bias is
/// [out_features].
struct MatMulArgs {
  const void* x = nullptr;
  void* y = nullptr;
  const void* bias = nullptr;      // or null
  const void* residual = nullptr;  // or null; added after the activation
  int64_t n = 0;
  ElementType type = ElementType::kFloat32;
  Activation activation = Activation::kNone;
};

/// Runs `body(i)` for i in [0, count), in any order, possibly at once; returns when all have ended.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

/// A validated packed weight made ready for this machine. Made once at load; Run() may be called from several threads
/// at once.
class SparseMatMul {
 public:
  virtual ~SparseMatMul() = default;

  /// Computes Y. `threads` is how many workers parallel_for has (a hint for cutting the work); results do not depend on
  /// it.
  virtual void Run(const MatMulArgs& args, int threads, const ParallelFor& parallel_for) const = 0;
};

/// `weight` must come from Validate(); its parts must outlive the result, which reads them.
/// An `isa` that this machine lacks is an error of the caller: pass one of SupportedIsas().
std::unique_ptr<SparseMatMul> MakeSparseMatMul(const PackedWeight& weight, Isa isa);

}  // namespace flashllm::cpu
