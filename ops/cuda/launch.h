// How a kernel is launched: its grid, in clusters or not, and whether it may start before the one before it has ended.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace flashllm::cuda {

/// A grid of one axis. More thread blocks than there can be stay too many, so that LaunchKernel refuses them, and do
/// not wrap around to fewer.
inline dim3 GridOf(int64_t blocks) { return dim3(static_cast<unsigned>(std::min<int64_t>(blocks, UINT32_MAX))); }

struct LaunchShape {
  dim3 grid;  // thread blocks
  int threads = 0;
  size_t shared_bytes = 0;    // dynamic shared memory of a thread block
  int cluster = 1;            // thread blocks of a cluster; they divide grid.x. More than one from 9.0 on
  bool programmatic = false;  // programmatic dependent launch: from 9.0 on
};

/// A LaunchShape as the runtime takes it. It holds the attributes that its configuration points to.
class KernelLaunch {
 public:
  KernelLaunch(const LaunchShape& shape, cudaStream_t stream) {
    config_.gridDim = shape.grid;
    config_.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config_.dynamicSmemBytes = shape.shared_bytes;
    config_.stream = stream;
    config_.attrs = attributes_;
    if (shape.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (shape.programmatic) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  KernelLaunch(const KernelLaunch&) = delete;
  KernelLaunch& operator=(const KernelLaunch&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_ = {};
};

/// Enqueues a kernel that takes one struct.
template <typename Params>
cudaError_t LaunchKernel(void (*kernel)(Params), const LaunchShape& shape, const Params& params, cudaStream_t stream) {
  if (shape.grid.x > INT32_MAX) return cudaErrorInvalidConfiguration;
  return cudaLaunchKernelEx(KernelLaunch(shape, stream).get(), kernel, params);
}

/// How many clusters of a kernel the current device runs at once.
template <typename Params>
cudaError_t CountClusters(void (*kernel)(Params), const LaunchShape& shape, int* clusters) {
  return cudaOccupancyMaxActiveClusters(clusters, kernel, KernelLaunch(shape, nullptr).get());
}

}  // namespace flashllm::cuda
