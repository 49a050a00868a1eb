// Canonical parts -> column layout of quads (layout.h): which k come together, then the streams.
#pragma once

#include "ops/sparse-matmul/cuda/convert.cuh"

namespace flashllm::cuda {

/// Brings k together and fills source.lengths.
void MeasureQuads(const WeightPlan& plan, const Source& source, cudaStream_t stream);

/// Writes the layout. `floats`: of the source's values.
cudaError_t FillQuads(const WeightPlan& plan, const Source& source, bool floats, uint8_t* layout, cudaStream_t stream);

}  // namespace flashllm::cuda
