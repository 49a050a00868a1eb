#include "ops/pruning/dense_kernels.h"
#include "ops/sparse-matmul/cpu/sparse_matmul.h"

namespace flashllm::pruning {

const DenseKernels& BestDenseKernels() {
#if defined(FLASHLLM_X86)
  switch (cpu::DetectIsa()) {
    case cpu::Isa::kAvx512:
      return kAvx512DenseKernels;
    case cpu::Isa::kAvx2:
      return kAvx2DenseKernels;
    default:
      break;
  }
#endif
  return kGenericDenseKernels;
}

}  // namespace flashllm::pruning
