#define FLASHLLM_EIGEN_NAMESPACE Eigen_flashllm_avx2
#define FLASHLLM_KERNELS kAvx2DenseKernels
#define FLASHLLM_KERNELS_NAME "avx2"
#include "ops/pruning/dense_kernels.inc"
