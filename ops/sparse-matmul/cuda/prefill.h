// SparseMatMul for many columns: the packed weight is expanded into dense float16 scratch, slab of rows by slab of
// rows, and multiplied densely (ops/dense-matmul). docs/kernels.md tells from how many columns on it wins.
#pragma once

#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// Whether PrefillMatMul computes with this plan and X of this type: layout kGather, values and X in float16.
bool SupportsPrefill(const WeightPlan& plan, ElementType type);

/// Device memory with which PrefillMatMul is fastest for n columns. All multiplications of one stream may share it.
int64_t PrefillScratchBytes(const WeightPlan& plan, int64_t n);

/// Readies the kernels on the current device: call it before the first PrefillMatMul, after GetDenseDevice.
cudaError_t PreparePrefill();

/// As Launch (spmm.h), for a plan that SupportsPrefill: some kernels on one stream, no state between calls,
/// bit-identical from run to run. `scratch` is device memory, aligned to 256 bytes, for as many rows of the weight as a
/// slab gets: at least 16, else cudaErrorInvalidValue.
cudaError_t PrefillMatMul(const WeightPlan& plan, const void* layout, const DenseDevice& device, const MatMulArgs& args,
                          void* scratch, int64_t scratch_bytes, cudaStream_t stream);

}  // namespace flashllm::cuda
