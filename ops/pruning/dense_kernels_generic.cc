#define FLASHLLM_EIGEN_NAMESPACE Eigen_flashllm_generic
#define FLASHLLM_KERNELS kGenericDenseKernels
#define FLASHLLM_KERNELS_NAME "generic"
#include "ops/pruning/dense_kernels.inc"
