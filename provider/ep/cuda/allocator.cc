#include "provider/ep/cuda/allocator.h"

#include <utility>

#include "provider/ep/cuda/stream.h"

namespace flashllm::ep {
namespace {

class Allocator : public OrtAllocator {
 public:
  Allocator(const OrtMemoryInfo* info, std::shared_ptr<MemoryPool> pool, const OrtLogger* logger)
      : OrtAllocator{}, info_(info), pool_(std::move(pool)), logger_(logger) {
    version = g_ort.version;
    OrtAllocator::Alloc = [](OrtAllocator* self, size_t bytes) noexcept -> void* {
      return static_cast<Allocator*>(self)->Allocate(bytes, nullptr);
    };
    OrtAllocator::Reserve = OrtAllocator::Alloc;
    OrtAllocator::Free = [](OrtAllocator* self, void* block) noexcept {
      if (block != nullptr) static_cast<Allocator*>(self)->pool_->Free(block);
    };
    OrtAllocator::Info = [](const OrtAllocator* self) noexcept -> const OrtMemoryInfo* {
      return static_cast<const Allocator*>(self)->info_;
    };
    AllocOnStream = [](OrtAllocator* self, size_t bytes, OrtSyncStream* stream) noexcept -> void* {
      return static_cast<Allocator*>(self)->Allocate(bytes, HandleOf(stream));
    };
    GetStats = [](const OrtAllocator* self, OrtKeyValuePairs** out) noexcept -> OrtStatus* {
      return Guard([&] { *out = static_cast<const Allocator*>(self)->Statistics(); });
    };
    Shrink = [](OrtAllocator* self) noexcept -> OrtStatus* {
      static_cast<Allocator*>(self)->pool_->Trim();
      return nullptr;
    };
  }

 private:
  void* Allocate(size_t bytes, cudaStream_t stream) noexcept {
    if (bytes == 0) return nullptr;
    try {
      return pool_->Allocate(bytes, stream);
    } catch (const std::exception& error) {
      Log(logger_, ORT_LOGGING_LEVEL_ERROR, error.what());
    } catch (...) {
    }
    return nullptr;
  }

  OrtKeyValuePairs* Statistics() const {
    const MemoryStatistics now = pool_->statistics();
    OrtKeyValuePairs* pairs = nullptr;
    g_ort.api->CreateKeyValuePairs(&pairs);
    const auto add = [&](const char* name, size_t value) {
      g_ort.api->AddKeyValuePair(pairs, name, std::to_string(value).c_str());
    };
    add("InUse", now.in_use);
    add("MaxInUse", now.max_in_use);
    add("TotalAllocated", now.reserved);
    add("MaxReserved", now.max_reserved);
    add("NumAllocs", now.allocations);
    add("NumArenaExtensions", now.segments);
    add("MaxAllocSize", now.largest);
    const DeviceUse all = UseOfDevice(pool_->device());
    add("DeviceReserved", all.reserved);
    add("MaxDeviceReserved", all.max_reserved);
    return pairs;
  }

  const OrtMemoryInfo* const info_;
  const std::shared_ptr<MemoryPool> pool_;
  const OrtLogger* const logger_;
};

}  // namespace

OrtAllocator* MakeAllocator(const OrtMemoryInfo* info, std::shared_ptr<MemoryPool> pool, const OrtLogger* logger) {
  return new Allocator(info, std::move(pool), logger);
}

void ReleaseAllocator(OrtAllocator* allocator) { delete static_cast<Allocator*>(allocator); }

}  // namespace flashllm::ep
