// LayerNormalization and SkipLayerNormalization over the last axis.
#pragma once

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda {

/// y = (s - mean(s)) / sqrt(variance(s) + epsilon) * scale + shift for each row of s = x + skip + skip_bias, computed
/// in float32 with the variance taken from the differences to the mean. In float16, s is rounded only where it is
/// stored.
struct LayerNormArgs {
  const void* x = nullptr;          // [rows, width]
  const void* scale = nullptr;      // [width]
  const void* shift = nullptr;      // [width] or null
  const void* skip = nullptr;       // [rows, width] or null: added first (SkipLayerNormalization)
  const void* skip_bias = nullptr;  // [width] or null: added with skip
  void* y = nullptr;                // [rows, width]; may be x or skip
  void* sum = nullptr;              // [rows, width] or null: s; may be x or skip
  int64_t rows = 0, width = 0;
  float epsilon = 1e-5f;
  DataType type = DataType::kFloat16;  // of every tensor: float16 or float32
  bool constant_affine = false;        // scale and shift are initializers: with `programmatic`, read ahead
  bool programmatic = false;
};

cudaError_t LaunchLayerNorm(const LayerNormArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
