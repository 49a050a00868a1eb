// SparseMatMul for many columns: the packed weight is expanded into dense float16 scratch, slab by slab, and multiplied
// densely (ops/dense-matmul). docs/dense-matmul.md tells from how many columns on it wins.
#pragma once

#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// Whether PrefillMatMul computes with this plan and X of this type: not kCanonical, values and X in float16.
bool SupportsPrefill(const WeightPlan& plan, ElementType type);

/// Whether PrefillMatMul takes less time than Launch, as measured (docs/dense-matmul.md): Launch decodes the weight
/// again for every 256 columns, or 128 or 64 where it does not take so many, or 32 with teams of one warp and of
/// quads, or one or two of a kJagged layout.
bool PrefillIsFaster(const WeightPlan& plan, int64_t n);

/// Device memory with which PrefillMatMul is fastest: what the whole weight takes, up to a bound. All multiplications
/// of one stream may share it.
int64_t PrefillScratchBytes(const WeightPlan& plan);

/// A weight may be kept expanded beside its layout, where there is memory for both: float16 [out_features,
/// in_features], made once by Expand over all row blocks.
int64_t ExpandedBytes(const WeightPlan& plan);

/// Whether ExpandedMatMul is expected to take less time than Launch and PrefillMatMul: with more than 64 columns always
/// (of 65 to 128 a few large, very sparse weights are level), and with fewer where the arithmetic of decoding, not
/// memory, limits.
bool ExpandedIsFaster(const WeightPlan& plan, int64_t n);

/// As PrefillMatMul, of an expanded weight: one kernel.
cudaError_t ExpandedMatMul(const WeightPlan& plan, const void* expanded, const DenseDevice& device,
                           const MatMulArgs& args, cudaStream_t stream);

/// Readies the kernels on the current device: call it before the first PrefillMatMul, after GetDeviceInfo and
/// GetDenseDevice.
cudaError_t PreparePrefill(const DeviceInfo& info);

/// As Launch (spmm.h), for a plan that SupportsPrefill: two kernels a slab, no state between calls, bit-identical from
/// run to run. `scratch` is device memory, aligned to 256 bytes; a slab gets as many row blocks of the plan as it
/// holds. cudaErrorInvalidValue where it does not hold the largest one.
cudaError_t PrefillMatMul(const WeightPlan& plan, const void* layout, const DenseDevice& device, const MatMulArgs& args,
                          void* scratch, int64_t scratch_bytes, cudaStream_t stream);

}  // namespace flashllm::cuda
