// MatMul of ONNX for any batch, broadcasting and type of float: the plain kernel for products that are no linear layer,
// as exporters write attention. Linear layers have ops/dense-matmul and ops/sparse-matmul.
#pragma once

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda {

/// The shape of a · b: the axes before the last two are broadcast. False where ranks below 2, the inner dimensions or
/// the batches do not fit.
bool MatMulShape(const Shape& a, const Shape& b, Shape* y);

/// y[…, m, n] = Σ a[…, m, k] · b[…, k, n], summed in float32 in the order of k.
struct BatchedMatMulArgs {
  const void *a = nullptr, *b = nullptr;
  void* y = nullptr;  // of MatMulShape's shape; overlaps neither a nor b
  Shape a_shape, b_shape;
  DataType type = DataType::kFloat16;  // of all three: float16 or float32
  bool programmatic = false;
};

/// cudaErrorInvalidValue where MatMulShape or the type says no.
cudaError_t LaunchBatchedMatMul(const BatchedMatMulArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
