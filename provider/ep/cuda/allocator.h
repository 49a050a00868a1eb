// Memory of a GPU as an allocator of ONNX Runtime.
#pragma once

#include <memory>

#include "provider/ep/cuda/memory_pool.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

/// An allocator over a pool; `info` must outlive it. A failed allocation returns null and is logged:
/// LastMemoryFailure() says how much was needed and free.
OrtAllocator* MakeAllocator(const OrtMemoryInfo* info, std::shared_ptr<MemoryPool> pool, const OrtLogger* logger);
void ReleaseAllocator(OrtAllocator* allocator);

}  // namespace flashllm::ep
