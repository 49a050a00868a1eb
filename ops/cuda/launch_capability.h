// As which GPU kernels are launched.
#pragma once

namespace flashllm::cuda {

/// The library holds machine code for 8.x and 9.0, and the PTX of 8.0, which the driver compiles for newer GPUs: these
/// are launched as 8.0, without clusters, programmatic launches or TMA; and so is 9.0 by a build without its code
/// (FLASHLLM_CUDA_ARCHITECTURES). 90 = 9.0.
#ifdef FLASHLLM_CUDA_SM90A
constexpr int kNewestCode = 90;
#else
constexpr int kNewestCode = 89;
#endif
constexpr int LaunchCapability(int compute_capability) {
  return compute_capability > kNewestCode ? 80 : compute_capability;
}

}  // namespace flashllm::cuda
