// The kernels of the provider on a GPU.
#pragma once

#include "provider/ort_api.h"

namespace flashllm::ep {

Owned<OrtKernelRegistry> MakeCudaKernelRegistry();

}  // namespace flashllm::ep
