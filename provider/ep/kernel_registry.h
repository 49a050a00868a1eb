// The kernels of the execution provider.
#pragma once

#include "provider/ort_api.h"

namespace flashllm::ep {

/// A registry with every kernel of this library.
Owned<OrtKernelRegistry> MakeKernelRegistry();

}  // namespace flashllm::ep
