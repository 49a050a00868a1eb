// SparseMatMul for many columns: the packed weight is expanded into dense float16 scratch, slab of rows by slab of rows,
// and multiplied densely (ops/dense-matmul). docs/kernels.md tells from how many columns on it wins.
#pragma once

#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// Whether PrefillMatMul computes with this plan and X of this type: layout kGather, values and X in float16.
bool SupportsPrefill(const WeightPlan& plan, ElementType type);

/// Device memory that PrefillMatMul wants as its scratch for n columns. It may be shared by all multiplications of one
/// stream.
int64_t PrefillScratchBytes(const WeightPlan& plan, int64_t n);

/// As Launch (spmm.h), for a plan that SupportsPrefill: some kernels on one stream, no state between calls,
/// bit-identical from run to run. `scratch` is PrefillScratchBytes of device memory, aligned to 256 bytes.
cudaError_t PrefillMatMul(const WeightPlan& plan, const void* layout, const DenseDevice& device, const MatMulArgs& args,
                          void* scratch, cudaStream_t stream);

}  // namespace flashllm::cuda
