// Entry points: the device, and which kernel a call takes.
#include "ops/sparse-matmul/cuda/spmm.h"

#include <algorithm>

#include "ops/cuda/launch_capability.h"
#include "ops/cuda/tensor_map.h"
#include "ops/sparse-matmul/cuda/column_launch.h"
#include "ops/sparse-matmul/cuda/generic.cuh"
#include "ops/sparse-matmul/cuda/jagged.h"

namespace flashllm::cuda {
namespace {

template <typename Value, typename Element>
cudaError_t LaunchGeneric(const GenericParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((params.m * 32ll + kGenericThreads - 1) / kGenericThreads),
                  (params.n + kGenericColumns - 1) / kGenericColumns);
  GenericMatMul<Value, Element><<<grid, kGenericThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

template <typename Value>
cudaError_t LaunchGeneric(const GenericParams& params, ElementType type, cudaStream_t stream) {
  return type == ElementType::kFloat32 ? LaunchGeneric<Value, float>(params, stream)
                                       : LaunchGeneric<Value, __half>(params, stream);
}

cudaError_t LaunchCanonical(const WeightPlan& plan, const DeviceParts& parts, const MatMulArgs& args,
                            cudaStream_t stream) {
  GenericParams params = {};
  params.bitmap = reinterpret_cast<const uint32_t*>(parts.bitmap);
  params.row_offsets = parts.row_offsets;
  params.values = parts.values;
  params.x = args.x;
  params.bias = args.bias;
  params.residual = args.residual;
  params.y = args.y;
  params.row_words = BitmapRowBytes(plan.in_features) / 4;
  params.m = static_cast<int>(plan.out_features);
  params.k = static_cast<int>(plan.in_features);
  params.n = static_cast<int>(args.n);
  params.relu = args.activation == Activation::kRelu;
  switch (parts.value_type) {
    case ValueType::kFloat32:
      return LaunchGeneric<float>(params, args.type, stream);
    case ValueType::kFloat16:
      return LaunchGeneric<__half>(params, args.type, stream);
    case ValueType::kBFloat16:
      return LaunchGeneric<__nv_bfloat16>(params, args.type, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t LaunchSlice(const WeightPlan& plan, const void* layout, const DeviceParts& parts, const MatMulArgs& args,
                        cudaStream_t stream) {
  if (plan.layout == Layout::kCanonical) return LaunchCanonical(plan, parts, args, stream);
  if (plan.layout == Layout::kJagged) return LaunchJagged(plan, layout, args, stream);
  if (plan.columns == Columns::kQuads) return LaunchGroupQuads(plan, layout, args, stream);
  if (plan.team != Team::kWarp) {
    return (plan.columns == Columns::kWords ? LaunchGroupWords : LaunchGroupHalves)(plan, layout, args, stream);
  }
  const bool bf16 = plan.value_type == ValueType::kBFloat16;
  if (plan.columns == Columns::kWords) return (bf16 ? LaunchWordsBf16 : LaunchWordsF16)(plan, layout, args, stream);
  return (bf16 ? LaunchHalvesBf16 : LaunchHalvesF16)(plan, layout, args, stream);
}

/// As DeviceInfo::memory_gbs.
int MemoryBandwidth(int device) {
  int memory_khz = 0, bus_bits = 0;
  if (cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, device) != cudaSuccess) {
    cudaGetLastError();  // not an error of the caller's
    return 0;
  }
  return static_cast<int>(2.0 * memory_khz * bus_bits / 8 / 1e6);  // two transfers a clock
}

}  // namespace

cudaError_t GetDeviceInfo(int device, DeviceInfo* info) {
  *info = DeviceInfo{};
  info->device = device;
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&info->sm_count, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&info->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  info->compute_capability = LaunchCapability(major * 10 + minor);
  if (info->compute_capability < 80) return cudaErrorNoKernelImageForDevice;
  info->memory_gbs = MemoryBandwidth(device);
  error = FindTensorMapEncoder(&info->encode_tensor_map);
  if (error != cudaSuccess) return error;
  for (PrepareColumns* prepare :
       {PrepareHalvesF16, PrepareWordsF16, PrepareHalvesBf16, PrepareWordsBf16, PrepareGroupHalves, PrepareGroupWords,
        PrepareGroupQuads, PrepareManyHalves, PrepareManyWords, PrepareJagged}) {
    error = prepare(info);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t Launch(const WeightPlan& plan, const void* layout, const DeviceParts& parts, const MatMulArgs& args,
                   cudaStream_t stream) {
  if (!Supports(plan, args.type) || args.n < 0) return cudaErrorInvalidValue;
  // A grid's second dimension has at most 65,535 blocks, of one column at the least.
  constexpr int64_t kMaxColumns = 65535;
  for (int64_t first = 0; first < args.n && plan.out_features > 0; first += kMaxColumns) {
    const MatMulArgs slice = SliceColumns(plan, args, first, std::min(kMaxColumns, args.n - first));
    const cudaError_t error = LaunchSlice(plan, layout, parts, slice, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
