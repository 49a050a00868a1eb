// Memory of a GPU: its allocators, how much of it is used, and tensors there that no session owns.
#pragma once

#include <napi.h>

#include "provider/ort_api.h"

namespace flashllm::node {

/// The memory of a GPU that the provider offers, or null.
const OrtMemoryInfo* MemoryOfGpu(int ordinal);

/// The allocator of a GPU's memory that no session owns. Throws Error where the provider does not offer that GPU.
OrtAllocator* AllocatorOfGpu(int ordinal);

/// offersGpu(deviceId): whether sessions can use it
Napi::Value OffersGpu(const Napi::CallbackInfo& info);

/// deviceUse(deviceId): {reserved, maxReserved}, bytes that the provider holds in this process, now and at most so far
Napi::Value DeviceUse(const Napi::CallbackInfo& info);

/// downloadTensor(handle): Promise<{type, dims, data}>, a copy in the memory of the CPU
Napi::Value DownloadTensor(const Napi::CallbackInfo& info);
/// allocateTensor(type, dims, deviceId): {type, dims, device} in the memory of a GPU, of unspecified content
Napi::Value AllocateTensor(const Napi::CallbackInfo& info);
/// disposeTensor(handle): frees the memory as soon as no run uses it
Napi::Value DisposeTensor(const Napi::CallbackInfo& info);

/// writeTensor(handle, data): copies a typed array of the tensor's type and size into one on a GPU. Waits for the copy
Napi::Value WriteTensor(const Napi::CallbackInfo& info);

}  // namespace flashllm::node
