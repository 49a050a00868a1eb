#include "ops/pruning/device.h"

namespace flashllm::pruning {

void ThrowNotPositive(int64_t n, int64_t near) {
  throw PruningError("a matrix of " + std::to_string(n) + " inputs is not positive definite near input " +
                     std::to_string(near) + ": raise the damping");
}

#if !defined(FLASHLLM_HAS_CUDA)
std::unique_ptr<Device> MakeCudaDevice(Workers&, int) {
  throw PruningError(
      "this build has no CUDA: install nvcc (CUDA 12.4 or later) and run `npm rebuild onnxruntime-ep-flashllm`, or use "
      "the CPU");
}
#endif

}  // namespace flashllm::pruning
