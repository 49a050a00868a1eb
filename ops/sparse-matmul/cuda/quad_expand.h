// Columns of quads (layout.h) back into a dense weight: what expand.cu leaves to quad_expand.cu.
#pragma once

#include "ops/sparse-matmul/cuda/dense_target.cuh"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// Of Expand and PrepareExpand (expand.h) what concerns them.
cudaError_t ExpandQuads(const WeightPlan& plan, const void* layout, int first_block, int end_block,
                        const DenseTarget& dense, bool programmatic, cudaStream_t stream);
cudaError_t PrepareExpandQuads(const DeviceInfo& info);

}  // namespace flashllm::cuda
