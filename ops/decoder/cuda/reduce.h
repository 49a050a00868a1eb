// Reductions along one axis of a tensor seen as [outer, axis, inner], CumSum, Softmax, ArgMax and Range.
#pragma once

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda {

enum class ReduceOp : uint8_t { kMax, kMin, kSum, kMean };

/// y[o, i] = op over a of x[o, a, i]. Several neighbouring axes are one. float16 is summed in float32; a maximum or
/// minimum with a NaN in it is NaN. An empty axis gives 0 for kSum and is cudaErrorInvalidValue for the others.
struct ReduceArgs {
  ReduceOp op = ReduceOp::kSum;
  const void* x = nullptr;  // [outer, axis, inner]
  void* y = nullptr;        // [outer, inner]
  int64_t outer = 0, axis = 0, inner = 1;
  DataType type = DataType::kFloat16;  // anything but bool; kMean: floats
  bool programmatic = false;
};

cudaError_t LaunchReduce(const ReduceArgs& args, cudaStream_t stream);

/// y[o, a, i] = x[o, 0, i] + … + x[o, a, i].
struct CumSumArgs {
  const void* x = nullptr;
  void* y = nullptr;  // may be x
  int64_t outer = 0, axis = 0, inner = 1;
  bool exclusive = false, reverse = false;  // as in ONNX
  DataType type = DataType::kInt64;         // anything but bool
  bool programmatic = false;
};

cudaError_t LaunchCumSum(const CumSumArgs& args, cudaStream_t stream);

/// y[r, c] = exp(x[r, c] - max) / sum over c, in float32. A row whose every element is -∞ is NaN, as in ONNX Runtime.
struct SoftmaxArgs {
  const void* x = nullptr;  // [rows, width]
  void* y = nullptr;        // may be x
  int64_t rows = 0, width = 0;
  DataType type = DataType::kFloat16;  // float16 or float32
  bool programmatic = false;
};

cudaError_t LaunchSoftmax(const SoftmaxArgs& args, cudaStream_t stream);

/// y[r] = the lowest index of row r's largest element; of its first NaN where it has one.
struct ArgMaxArgs {
  const void* x = nullptr;  // [rows, width], width > 0
  int64_t* y = nullptr;     // [rows]
  int64_t rows = 0, width = 0;
  int64_t row_stride = 0;              // elements between rows; 0: width
  DataType type = DataType::kFloat16;  // float16 or float32
  bool programmatic = false;
};

cudaError_t LaunchArgMax(const ArgMaxArgs& args, cudaStream_t stream);

/// y[i] = start + i · delta. Integers are computed as int64, floats as float64 and rounded once.
struct RangeArgs {
  void* y = nullptr;
  int64_t count = 0;
  int64_t start = 0, delta = 1;                 // int32 and int64
  double float_start = 0.0, float_delta = 1.0;  // float32 and float16
  DataType type = DataType::kInt64;             // anything but bool
  bool programmatic = false;
};

/// With delta 0 it is a fill (ConstantOfShape).
cudaError_t LaunchRange(const RangeArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
