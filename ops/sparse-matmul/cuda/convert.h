// The converter of the jagged layout, which Measure and Convert (spmm.h) call.
#pragma once

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// Measure and Convert of Layout::kJagged.
cudaError_t MeasureJagged(const DeviceParts& parts, void* staging, cudaStream_t stream, WeightPlan* plan);
cudaError_t ConvertJagged(const WeightPlan& plan, const DeviceParts& parts, const void* staging, void* layout,
                          cudaStream_t stream);

}  // namespace flashllm::cuda
