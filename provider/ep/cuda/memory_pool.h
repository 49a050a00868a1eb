// Memory of one GPU (or pinned host memory for it) that is given out again and again: cudaMalloc takes some 100 us and
// waits for the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace flashllm::ep {

enum class MemoryKind { kDevice, kPinnedHost };

/// Counters of a pool, in bytes where nothing else is said.
struct MemoryStatistics {
  size_t in_use = 0, max_in_use = 0, reserved = 0, max_reserved = 0, largest = 0;
  size_t allocations = 0, segments = 0;  // counts
};

/// Blocks cut out of segments that cudaMalloc gave; neighbouring free blocks are joined. A block that was used on a
/// stream is given only to that stream until the stream has been waited for (StreamIsIdle): the GPU runs behind the
/// host. Pinned host memory is given to nobody before that, since the host writes it at once. Safe to call from several
/// threads.
class MemoryPool {
 public:
  MemoryPool(int device, MemoryKind kind);
  ~MemoryPool();
  MemoryPool(const MemoryPool&) = delete;

  /// At least `bytes` (more than 0) aligned to 256 bytes, for use on `stream` (null: by anybody). Throws Error
  /// (ORT_EP_FAIL) that says how much was needed and free. Where the device is full, cached memory of every pool is
  /// given back first.
  void* Allocate(size_t bytes, cudaStream_t stream);
  void Free(void* block) noexcept;

  /// Everything that was enqueued on the stream has run: what is free of it may be used anywhere. `run_ended`: so may
  /// what is still in use, once it is freed; a run that goes on enqueues more that uses it.
  void StreamIsIdle(cudaStream_t stream, bool run_ended) noexcept;

  /// Memory handed out from here to EndPrivate() is of its own: what a captured graph uses is not given to others, even
  /// where it is free, until ReleasePrivate(). `tag` is any number but 0.
  void BeginPrivate(uint64_t tag);
  void EndPrivate();
  void ReleasePrivate(uint64_t tag) noexcept;

  /// Gives segments in which nothing is used back to the system.
  void Trim() noexcept;

  MemoryStatistics statistics() const;
  int device() const { return device_; }

 private:
  struct Segment;
  struct Block {
    Segment* segment;
    char* at;
    size_t bytes;
    cudaStream_t stream;  // on which it was used last, or null
    bool used;
  };
  using Blocks = std::map<char*, Block>;
  struct Segment {
    char* base;
    size_t bytes;
    uint64_t owner;  // 0: the pool; else the tag of a private part
    Blocks blocks;
  };
  struct BySize {
    bool operator()(const Block* a, const Block* b) const {
      return a->bytes != b->bytes ? a->bytes < b->bytes : a->at < b->at;
    }
  };
  using FreeBlocks = std::set<Block*, BySize>;

  Block* FindFree(size_t bytes, cudaStream_t stream);
  Block* Grow(size_t bytes);
  void* Take(Block* block, size_t bytes, cudaStream_t stream);
  void Join(Block* block);
  bool MayFollow(const Block& block, cudaStream_t stream) const;
  void* FromSystem(size_t bytes);
  void ToSystem(const Segment& segment) noexcept;
  void TrimLocked() noexcept;
  std::string Describe(size_t bytes) const;

  const int device_;
  const MemoryKind kind_;
  mutable std::mutex mutex_;
  std::list<Segment> segments_;
  std::map<uint64_t, FreeBlocks> free_;  // by owner
  std::unordered_map<void*, Block*> used_;
  std::set<cudaStream_t> streams_;  // that some block may be tagged with
  uint64_t owner_ = 0;
  MemoryStatistics statistics_;
};

/// The message of the last Allocate() of any pool that failed; empty if none has. For those who find null in a tensor:
/// ONNX Runtime's allocators have no other way to fail, and it does not look.
std::string LastMemoryFailure();

/// What all pools of this process hold of a GPU's memory, in bytes. The CUDA context and the kernels' code come on top.
struct DeviceUse {
  size_t reserved = 0, max_reserved = 0;
};
DeviceUse UseOfDevice(int device);

/// Tells every pool of the process that a stream is idle, or (`run_ended`) is about to be destroyed.
void StreamIsIdleInAllPools(cudaStream_t stream, bool run_ended) noexcept;

/// Memory of a pool for the length of a scope. What the GPU still does with it comes before what the same stream does
/// next.
class Scratch {
 public:
  Scratch(MemoryPool* pool, size_t bytes, cudaStream_t stream)
      : pool_(pool), data_(bytes == 0 ? nullptr : pool->Allocate(bytes, stream)) {}
  ~Scratch() {
    if (data_ != nullptr) pool_->Free(data_);
  }
  Scratch(const Scratch&) = delete;
  void* get() const { return data_; }

 private:
  MemoryPool* pool_;
  void* data_;
};

}  // namespace flashllm::ep
