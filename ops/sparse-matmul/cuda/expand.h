// A packed weight back into a dense one, on the device.
#pragma once

#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// First row of row block `block` of the plan's partition; out_features for block = plan.blocks.
int64_t RowOfBlock(const WeightPlan& plan, int block);

/// Writes row blocks [first_block, end_block) of a weight that is not kCanonical to `dense`: rows
/// RowOfBlock(first_block) … RowOfBlock(end_block) - 1, [rows, in_features] in the plan's value type and this order,
/// contiguous, at any address aligned to an element (fastest at multiples of 16 bytes, with in_features a multiple of
/// 8). Enqueues one kernel, whose time hardly falls with the number of row blocks: every one is expanded by thread
/// blocks of its own. `programmatic` (programmatic dependent launch): the layout is read while the previous kernel of
/// the stream still runs; `dense` is written only after it.
cudaError_t Expand(const WeightPlan& plan, const void* layout, int first_block, int end_block, void* dense,
                   WeightOrder order, bool programmatic, cudaStream_t stream);

/// Raises the kernels' limits of shared memory on the current device: call it before the first Expand.
cudaError_t PrepareExpand(const DeviceInfo& info);

}  // namespace flashllm::cuda
