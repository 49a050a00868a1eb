// Entry points: the device, and which kernel a call takes.
#include "ops/dense-matmul/cuda/dense_matmul.h"

#include <algorithm>

#include "ops/cuda/launch_capability.h"
#include "ops/dense-matmul/cuda/mma_gemm.h"
#include "ops/dense-matmul/cuda/skinny.h"
#include "ops/dense-matmul/cuda/tma_gemm.h"

namespace flashllm::cuda {
namespace {

constexpr int64_t kLargestSide = int64_t{1} << 30;

bool IsValid(const DenseMatMulArgs& args) {
  return args.w != nullptr && args.x != nullptr && args.y != nullptr && args.m >= 1 && args.m <= kLargestSide &&
         args.k >= 1 && args.k <= kLargestSide && args.x_stride >= args.k && args.y_stride >= args.m;
}

/// Few columns and few rows of W: tiles of 64 rows would leave multiprocessors idle, and cutting K costs an exchange.
bool IsSmall(const DenseDevice& device, const DenseMatMulArgs& args) {
  constexpr int64_t kSmallWeight = int64_t{1} << 24;
  return args.n <= 8 && args.m < int64_t{48} * device.sm_count && args.m * args.k <= kSmallWeight;
}

cudaError_t LaunchRows(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  const bool panels = args.w_order == WeightOrder::kPanels;
  if (panels && !SupportsPanels(device, args)) return cudaErrorInvalidValue;
  if (panels || (SuitsTmaGemm(device, args) && !IsSmall(device, args))) return LaunchTmaGemm(device, args, stream);
  return args.n <= kSkinnyColumns ? LaunchSkinny(device, args, stream) : LaunchMmaGemm(device, args, stream);
}

}  // namespace

cudaError_t GetDenseDevice(int device, DenseDevice* info) {
  *info = DenseDevice{};
  info->device = device;
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&info->sm_count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  info->compute_capability = LaunchCapability(major * 10 + minor);
  if (info->compute_capability < 80) return cudaErrorNoKernelImageForDevice;
  error = PrepareMmaGemm();
  // Code for sm_90a runs on compute capability 9.0 alone.
  return error == cudaSuccess && info->compute_capability == 90 ? PrepareTmaGemm(info) : error;
}

bool SupportsPanels(const DenseDevice& device, const DenseMatMulArgs& args) {
  return args.k % kPanelK == 0 && SuitsTmaGemm(device, args);
}

cudaError_t LaunchDenseMatMul(const DenseDevice& device, const DenseMatMulArgs& given, cudaStream_t stream) {
  DenseMatMulArgs args = given;
  if (args.x_stride == 0) args.x_stride = args.k;
  if (args.y_stride == 0) args.y_stride = args.m;
  if (args.n == 0) return cudaSuccess;
  if (args.n < 0 || !IsValid(args)) return cudaErrorInvalidValue;
  // Kernels count rows of X and tiles in 32 bits.
  constexpr int64_t kMostRows = int64_t{1} << 22;
  for (int64_t first = 0; first < args.n; first += kMostRows) {
    DenseMatMulArgs slice = args;
    slice.n = std::min(kMostRows, args.n - first);
    slice.x = static_cast<const char*>(args.x) + first * args.x_stride * 2;
    slice.y = static_cast<char*>(args.y) + first * args.y_stride * 2;
    if (args.residual != nullptr) slice.residual = static_cast<const char*>(args.residual) + first * args.y_stride * 2;
    const cudaError_t error = LaunchRows(device, slice, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
