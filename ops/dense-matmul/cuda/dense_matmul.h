// Dense float16 matrix products on NVIDIA GPUs, from sm_80: Y[N, M] = act(X[N, K] · Wᵀ + bias) + residual, accumulated
// in float32. W is a weight [M, K] = [out_features, in_features]. docs/dense-matmul.md tells how and why.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flashllm::cuda {

/// What of a GPU the choice of a kernel depends on.
struct DenseDevice {
  int device = 0;
  int compute_capability = 0;  // 90 = 9.0
  int sm_count = 0;
  int clusters[3] = {};               // thread-block clusters of 1, 2 and 4 blocks that run at once
  void* encode_tensor_map = nullptr;  // the driver's cuTensorMapEncodeTiled; null before 9.0
};

/// Reads the properties of one GPU, the current device, and readies the kernels on it: call it before the first launch.
/// cudaErrorNoKernelImageForDevice where this library has no code for it (before 8.0).
cudaError_t GetDenseDevice(int device, DenseDevice* info);

/// How the elements of a weight [m, k] lie.
enum class WeightOrder {
  kRows,    // row-major
  kPanels,  // [k / kPanelK, m, kPanelK]: the first kPanelK of all rows, then the next; k is a multiple of kPanelK
};
constexpr int kPanelK = 64;

/// One multiplication. Everything is float16 in device memory, aligned to an element, row-major. Kernels that stream at
/// full speed want W and X at multiples of 16 bytes and K and x_stride multiples of 8; all else is computed correctly
/// and slower.
struct DenseMatMulArgs {
  const void* w = nullptr;         // [m, k], contiguous, in w_order
  const void* x = nullptr;         // [n, k], rows x_stride elements apart
  void* y = nullptr;               // [n, m], rows y_stride elements apart; may not overlap x
  const void* bias = nullptr;      // [m], or null
  const void* residual = nullptr;  // as y, or null; added after the activation; may be y's memory
  int64_t m = 0, k = 0, n = 0;
  int64_t x_stride = 0, y_stride = 0;        // in elements; 0: contiguous, k and m
  WeightOrder w_order = WeightOrder::kRows;  // kPanels: only where SupportsPanels
  bool relu = false;
  /// Programmatic dependent launch: W and bias are read while the previous kernel of the stream still runs; X and the
  /// residual are read, and Y is written, only after it.
  bool programmatic = false;
  /// With `programmatic`: W too is read only after the previous kernel, which may be what writes it.
  bool weights_late = false;
};

/// Whether LaunchDenseMatMul takes these w, x, k and x_stride with W in panels: on compute capability 9.0, k a multiple
/// of kPanelK, W and X where kernels stream at full speed.
bool SupportsPanels(const DenseDevice& device, const DenseMatMulArgs& args);

/// Enqueues the multiplication: one kernel, no workspace, no state between launches, bit-identical from run to run. Any
/// m, k >= 1; n = 0 does nothing. The current device must be `device.device`.
cudaError_t LaunchDenseMatMul(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
