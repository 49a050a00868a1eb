#define FLASHLLM_EIGEN_NAMESPACE Eigen_flashllm_avx512
#define FLASHLLM_KERNELS kAvx512DenseKernels
#define FLASHLLM_KERNELS_NAME "avx512"
#include "ops/pruning/dense_kernels.inc"
