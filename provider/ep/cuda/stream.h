// ONNX Runtime's streams and notifications, as CUDA streams and events.
#pragma once

#include <cuda_runtime_api.h>

#include "provider/ort_api.h"

namespace flashllm::ep {

/// A new stream of a device. Throws Error.
OrtSyncStreamImpl* MakeSyncStream(int device);

/// A view of a stream that somebody else owns and keeps until every view is released.
OrtSyncStreamImpl* MakeSyncStreamView(int device, cudaStream_t stream);

/// The CUDA stream behind ONNX Runtime's, or null.
cudaStream_t HandleOf(OrtSyncStream* stream);

}  // namespace flashllm::ep
