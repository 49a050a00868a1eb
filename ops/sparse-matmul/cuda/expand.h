// A packed weight back into a dense one, on the device.
#pragma once

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// Writes rows first_row … first_row + rows - 1 of a kGather weight to `dense`, [rows, in_features] in the plan's value
/// type, contiguous, at any address aligned to an element (fastest at multiples of 16 bytes, with in_features a
/// multiple of 8). first_row is a multiple of 16. Enqueues one kernel.
cudaError_t Expand(const WeightPlan& plan, const void* layout, int64_t first_row, int64_t rows, void* dense,
                   cudaStream_t stream);

/// Raises the kernel's limit of shared memory on the current device: call it before the first Expand.
cudaError_t PrepareExpand();

}  // namespace flashllm::cuda
