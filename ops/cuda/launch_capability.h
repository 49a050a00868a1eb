// As which GPU kernels are launched.
#pragma once

namespace flashllm::cuda {

/// The library holds machine code for 8.x and 9.0, and the PTX of 8.0, which the driver compiles for newer GPUs: these
/// are launched as 8.0, without clusters, programmatic launches or TMA. 90 = 9.0.
constexpr int LaunchCapability(int compute_capability) { return compute_capability > 90 ? 80 : compute_capability; }

}  // namespace flashllm::cuda
