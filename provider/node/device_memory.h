// Memory of a GPU that no session owns: how much of it is used, and writing into tensors there.
#pragma once

#include <napi.h>

namespace flashllm::node {

/// offersGpu(deviceId): whether sessions can use it
Napi::Value OffersGpu(const Napi::CallbackInfo& info);

/// deviceUse(deviceId): {reserved, maxReserved}, bytes that the provider holds in this process, now and at most so far
Napi::Value DeviceUse(const Napi::CallbackInfo& info);

/// writeTensor(handle, data): copies a typed array of the tensor's type and size into one on a GPU. Waits for the copy
Napi::Value WriteTensor(const Napi::CallbackInfo& info);

}  // namespace flashllm::node
