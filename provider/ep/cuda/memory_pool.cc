#include "provider/ep/cuda/memory_pool.h"

#include <algorithm>

#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

constexpr size_t kGrain = 512;                   // sizes are multiples of it
constexpr size_t kSmall = size_t{1} << 20;       // blocks up to this size share segments of kSegment bytes
constexpr size_t kSegment = size_t{8} << 20;     // for small blocks
constexpr size_t kLargeGrain = size_t{2} << 20;  // cudaMalloc's own: larger blocks get segments of their size
constexpr size_t kKeepWhole = size_t{1} << 20;   // a rest of a large block below this stays with it

size_t RoundUp(size_t bytes, size_t grain) { return (bytes + grain - 1) / grain * grain; }

/// The pools of the process. Never freed: sessions may end after every static object.
struct Pools {
  std::mutex mutex;
  std::set<MemoryPool*> all;

  void Record(const std::string& message) {
    std::lock_guard<std::mutex> lock(failure_mutex);
    failure = message;
  }
  std::mutex failure_mutex;
  std::string failure;  // the last one

  std::mutex use_mutex;
  std::map<int, DeviceUse> use;  // by device
};
Pools& ThePools() {
  static Pools* pools = new Pools();
  return *pools;
}

void CountReserved(int device, size_t more, size_t less) {
  Pools& pools = ThePools();
  std::lock_guard<std::mutex> lock(pools.use_mutex);
  DeviceUse& use = pools.use[device];
  use.reserved += more - less;
  use.max_reserved = std::max(use.max_reserved, use.reserved);
}

std::string Megabytes(size_t bytes) {
  const std::string whole = std::to_string(bytes / 1000000);
  return bytes < 1000000 ? std::to_string(bytes) + " bytes" : whole + " MB";
}

}  // namespace

MemoryPool::MemoryPool(int device, MemoryKind kind) : device_(device), kind_(kind) {
  Pools& pools = ThePools();
  std::lock_guard<std::mutex> lock(pools.mutex);
  pools.all.insert(this);
}

MemoryPool::~MemoryPool() {
  {
    Pools& pools = ThePools();
    std::lock_guard<std::mutex> lock(pools.mutex);
    pools.all.erase(this);
  }
  for (Segment& segment : segments_) ToSystem(segment);
}

void* MemoryPool::Allocate(size_t bytes, cudaStream_t stream) {
  const size_t wanted = RoundUp(bytes, kGrain);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (wanted >= bytes) {
      Block* block = FindFree(wanted, stream);
      if (block == nullptr) block = Grow(wanted);
      if (block != nullptr) return Take(block, wanted, stream);
    }
  }
  // The device is full: what pools have cached may be enough.
  if (stream != nullptr && !IsCapturing(stream)) {
    const DeviceScope scope(device_);  // the stream's: ONNX Runtime asks on any
    WaitForStream(stream);
    StreamIsIdleInAllPools(stream, false);
  }
  {
    Pools& pools = ThePools();
    std::lock_guard<std::mutex> lock(pools.mutex);
    for (MemoryPool* pool : pools.all) pool->Trim();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  Block* block = wanted >= bytes ? Grow(wanted) : nullptr;
  if (block != nullptr) return Take(block, wanted, stream);
  const std::string failure = Describe(bytes);
  ThePools().Record(failure);
  throw Error(ORT_EP_FAIL, failure);
}

bool MemoryPool::MayFollow(const Block& block, cudaStream_t stream) const {
  if (block.stream == nullptr) return true;
  return kind_ == MemoryKind::kDevice && block.stream == stream;
}

MemoryPool::Block* MemoryPool::FindFree(size_t bytes, cudaStream_t stream) {
  FreeBlocks& free = free_[owner_];
  Block key{nullptr, nullptr, bytes, nullptr, false};
  for (auto it = free.lower_bound(&key); it != free.end(); ++it) {
    // A small block is not cut out of a segment that serves large ones: it would keep it from being used whole.
    if (bytes <= kSmall && (*it)->segment->bytes > kSegment) continue;
    if (MayFollow(**it, stream)) return *it;
  }
  return nullptr;
}

MemoryPool::Block* MemoryPool::Grow(size_t bytes) {
  const size_t size = bytes <= kSmall ? kSegment : RoundUp(bytes, kLargeGrain);
  void* base = size >= bytes ? FromSystem(size) : nullptr;
  if (base == nullptr) return nullptr;
  Segment& segment = segments_.emplace_back(Segment{static_cast<char*>(base), size, owner_, {}});
  Block& block =
      segment.blocks.emplace(segment.base, Block{&segment, segment.base, size, nullptr, false}).first->second;
  free_[owner_].insert(&block);
  statistics_.reserved += size;
  statistics_.max_reserved = std::max(statistics_.max_reserved, statistics_.reserved);
  ++statistics_.segments;
  return &block;
}

void* MemoryPool::Take(Block* block, size_t bytes, cudaStream_t stream) {
  FreeBlocks& free = free_[block->segment->owner];
  free.erase(block);
  const size_t rest = block->bytes - bytes;
  if (rest >= (bytes <= kSmall ? kGrain : kKeepWhole)) {
    char* const at = block->at + bytes;
    Block& after =
        block->segment->blocks.emplace(at, Block{block->segment, at, rest, block->stream, false}).first->second;
    block->bytes = bytes;
    free.insert(&after);
  }
  block->used = true;
  block->stream = stream;
  if (stream != nullptr) streams_.insert(stream);
  used_[block->at] = block;
  statistics_.in_use += block->bytes;
  statistics_.max_in_use = std::max(statistics_.max_in_use, statistics_.in_use);
  statistics_.largest = std::max(statistics_.largest, block->bytes);
  ++statistics_.allocations;
  return block->at;
}

void MemoryPool::Free(void* at) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = used_.find(at);
  if (found == used_.end()) return;
  Block* const block = found->second;
  used_.erase(found);
  block->used = false;
  statistics_.in_use -= block->bytes;
  Join(block);
}

/// Makes a block free, joined with free neighbours that the same streams may use.
void MemoryPool::Join(Block* block) {
  Blocks& blocks = block->segment->blocks;
  FreeBlocks& free = free_[block->segment->owner];
  const auto joins = [&](const Block& other) { return !other.used && other.stream == block->stream; };
  auto at = blocks.find(block->at);
  if (const auto next = std::next(at); next != blocks.end() && joins(next->second)) {
    free.erase(&next->second);
    block->bytes += next->second.bytes;
    blocks.erase(next);
  }
  if (at != blocks.begin()) {
    Block& before = std::prev(at)->second;
    if (joins(before)) {
      free.erase(&before);
      before.bytes += block->bytes;
      blocks.erase(at);
      block = &before;
    }
  }
  free.insert(block);
}

void MemoryPool::StreamIsIdle(cudaStream_t stream, bool run_ended) noexcept {
  if (stream == nullptr) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (streams_.count(stream) == 0) return;
  if (run_ended) streams_.erase(stream);
  for (Segment& segment : segments_) {
    FreeBlocks& free = free_[segment.owner];
    for (auto it = segment.blocks.begin(); it != segment.blocks.end();) {
      Block& block = it->second;
      if (block.stream == stream && (run_ended || !block.used)) block.stream = nullptr;
      ++it;
      if (block.used) continue;
      while (it != segment.blocks.end() && !it->second.used &&
             (it->second.stream == block.stream || it->second.stream == stream)) {
        free.erase(&it->second);
        free.erase(&block);
        block.bytes += it->second.bytes;
        free.insert(&block);
        it = segment.blocks.erase(it);
      }
    }
  }
}

void MemoryPool::BeginPrivate(uint64_t tag) {
  std::lock_guard<std::mutex> lock(mutex_);
  owner_ = tag;
}

void MemoryPool::EndPrivate() {
  std::lock_guard<std::mutex> lock(mutex_);
  owner_ = 0;
}

void MemoryPool::ReleasePrivate(uint64_t tag) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  for (Segment& segment : segments_) {
    if (segment.owner == tag) segment.owner = 0;
  }
  const auto found = free_.find(tag);
  if (found == free_.end()) return;
  free_[0].insert(found->second.begin(), found->second.end());
  free_.erase(found);
}

void MemoryPool::Trim() noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  TrimLocked();
}

void MemoryPool::TrimLocked() noexcept {
  for (auto it = segments_.begin(); it != segments_.end();) {
    const Block& first = it->blocks.begin()->second;
    const bool unused = it->owner == 0 && !first.used && first.stream == nullptr && first.bytes == it->bytes;
    if (!unused) {
      ++it;
      continue;
    }
    free_[0].erase(&it->blocks.begin()->second);
    ToSystem(*it);
    statistics_.reserved -= it->bytes;
    --statistics_.segments;
    it = segments_.erase(it);
  }
}

void* MemoryPool::FromSystem(size_t bytes) {
  const DeviceScope scope(device_);
  // While a graph is captured on this thread, allocating must not end the capture.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  CheckCuda(cudaThreadExchangeStreamCaptureMode(&mode), "setting the capture mode");
  void* base = nullptr;
  const cudaError_t failed =
      kind_ == MemoryKind::kDevice ? cudaMalloc(&base, bytes) : cudaHostAlloc(&base, bytes, cudaHostAllocPortable);
  static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
  if (failed == cudaSuccess) {
    if (kind_ == MemoryKind::kDevice) CountReserved(device_, bytes, 0);
    return base;
  }
  if (failed != cudaErrorMemoryAllocation) CheckCuda(failed, "allocating memory");
  static_cast<void>(cudaGetLastError());
  return nullptr;
}

void MemoryPool::ToSystem(const Segment& segment) noexcept {
  // At the end of a process the runtime may be gone; then there is nothing to free.
  static_cast<void>(kind_ == MemoryKind::kDevice ? cudaFree(segment.base) : cudaFreeHost(segment.base));
  static_cast<void>(cudaGetLastError());
  if (kind_ == MemoryKind::kDevice) CountReserved(device_, 0, segment.bytes);
}

std::string MemoryPool::Describe(size_t bytes) const {
  size_t free = 0, total = 0;
  if (kind_ == MemoryKind::kDevice) {
    const DeviceScope scope(device_);
    static_cast<void>(cudaMemGetInfo(&free, &total));
    return "flashllm: out of memory on GPU " + std::to_string(device_) + ": " + Megabytes(bytes) + " were needed, " +
           Megabytes(free) + " of " + Megabytes(total) + " are free, and this session uses " +
           Megabytes(statistics_.in_use) +
           ". Use a smaller batch, a shorter context, compact_weights, fewer expanded_megabytes and jagged_megabytes "
           "or a sparser model";
  }
  return "flashllm: out of pinned host memory: " + Megabytes(bytes) + " were needed";
}

MemoryStatistics MemoryPool::statistics() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return statistics_;
}

std::string LastMemoryFailure() {
  Pools& pools = ThePools();
  std::lock_guard<std::mutex> lock(pools.failure_mutex);
  return pools.failure;
}

DeviceUse UseOfDevice(int device) {
  Pools& pools = ThePools();
  std::lock_guard<std::mutex> lock(pools.use_mutex);
  return pools.use[device];
}

void StreamIsIdleInAllPools(cudaStream_t stream, bool run_ended) noexcept {
  Pools& pools = ThePools();
  std::lock_guard<std::mutex> lock(pools.mutex);
  for (MemoryPool* pool : pools.all) pool->StreamIsIdle(stream, run_ended);
}

}  // namespace flashllm::ep
