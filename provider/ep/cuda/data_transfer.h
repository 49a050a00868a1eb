// Copies between host and GPUs for ONNX Runtime.
#pragma once

#include "provider/ort_api.h"

namespace flashllm::ep {

OrtDataTransferImpl* MakeDataTransfer();

/// Copies one tensor to where another lies, on `stream`; null: waits until it is done. Both are of the same size.
/// Throws Error.
void CopyTensor(const OrtValue* from, OrtValue* to, OrtSyncStream* stream);

}  // namespace flashllm::ep
