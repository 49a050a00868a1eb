// Gather along the first axis: embeddings and positions.
#pragma once

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda {

/// y[i, :] = table[indices[i], :], any element type. Negative indices count from the end, as ONNX has it.
struct GatherArgs {
  const void* table = nullptr;    // [table_rows, row_bytes]
  const void* indices = nullptr;  // [count], int32 or int64
  void* y = nullptr;              // [count, row_bytes]
  int64_t table_rows = 0;
  int64_t row_bytes = 0;  // any number of bytes; fastest where it and both pointers are multiples of 16
  int64_t count = 0;
  DataType index_type = DataType::kInt64;
  uint32_t* fault = nullptr;  // kFaultIndex
  bool programmatic = false;
};

cudaError_t LaunchGather(const GatherArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
