// The GPU's memory as it is handed out, over a CUDA runtime that only counts: no GPU is needed for it.
#include "provider/ep/cuda/memory_pool.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>

#include "doctest/doctest.h"
#include "provider/ort_api.h"

using namespace flashllm;
using namespace flashllm::ep;

namespace {

constexpr size_t kMb = size_t{1} << 20;

struct FakeRuntime {
  size_t capacity = 0, taken = 0;  // bytes, of all devices together
  std::map<void*, size_t> segments;
  int current = 0;  // device
  uintptr_t next = uintptr_t{1} << 40;
};
FakeRuntime fake;

/// Streams and events are numbers, whose last digit is their device.
cudaStream_t Stream(int number, int device = 0) {
  return reinterpret_cast<cudaStream_t>(uintptr_t(10 * number + device));
}
int DeviceOf(const void* handle) { return static_cast<int>(reinterpret_cast<uintptr_t>(handle) % 10); }

/// Anew, with so many bytes.
void UseDevices(size_t bytes) {
  fake = FakeRuntime();
  fake.capacity = bytes;
}

bool IsFull(MemoryPool* pool, size_t bytes, cudaStream_t stream) {
  try {
    pool->Allocate(bytes, stream);
    return false;
  } catch (const Error&) {
    return true;
  }
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (fake.taken + bytes > fake.capacity) return cudaErrorMemoryAllocation;
  *memory = reinterpret_cast<void*>(fake.next);
  fake.next += bytes;
  fake.taken += bytes;
  fake.segments[*memory] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  fake.taken -= fake.segments.at(memory);
  fake.segments.erase(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = fake.capacity - fake.taken;
  *total = fake.capacity;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = fake.current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return fake.current = device, cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaErrorNotReady; }  // so that it is waited for
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = reinterpret_cast<cudaEvent_t>(uintptr_t(10000 + fake.current)), cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return DeviceOf(event) == DeviceOf(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "an error"; }
const char* cudaGetErrorString(cudaError_t) { return "of the fake runtime"; }

}  // extern "C"

TEST_CASE("free memory is its stream's until the run there has ended, then anybody's, and at last the system's") {
  UseDevices(12 * kMb);
  MemoryPool pool(0, MemoryKind::kDevice);
  void* const block = pool.Allocate(8 * kMb, Stream(1));
  pool.Free(block);
  CHECK(pool.Allocate(8 * kMb, Stream(1)) == block);
  pool.Free(block);
  CHECK(IsFull(&pool, 8 * kMb, Stream(2)));
  pool.StreamIsIdle(Stream(1), true);
  CHECK(pool.Allocate(8 * kMb, Stream(2)) == block);
  pool.StreamIsIdle(Stream(2), true);
  pool.Free(block);
  pool.Trim();
  CHECK(fake.taken == 0);
}

TEST_CASE("a run that found the device full goes on to use its memory: nobody else gets it before that run's end") {
  UseDevices(12 * kMb);
  MemoryPool pool(0, MemoryKind::kDevice);
  void* const block = pool.Allocate(8 * kMb, Stream(1));
  CHECK(IsFull(&pool, 8 * kMb, Stream(1)));  // waits for the stream, but not for the run
  pool.Free(block);                          // while a kernel that reads it may be on the way
  CHECK(IsFull(&pool, 8 * kMb, Stream(2)));
  pool.StreamIsIdle(Stream(1), true);
  CHECK(pool.Allocate(8 * kMb, Stream(2)) == block);
}

TEST_CASE("cached memory of a device is given back where that is full, whatever device the thread has") {
  for (int device : {0, 1}) {
    CAPTURE(device);
    UseDevices(12 * kMb);
    MemoryPool pool(device, MemoryKind::kDevice);
    pool.Free(pool.Allocate(8 * kMb, Stream(1, device)));
    CHECK_FALSE(IsFull(&pool, 10 * kMb, Stream(1, device)));
    CHECK(fake.current == 0);
    CHECK(fake.taken == 10 * kMb);
  }
}

TEST_CASE("memory of a recorded graph is its own until it is released") {
  UseDevices(12 * kMb);
  MemoryPool pool(0, MemoryKind::kDevice);
  pool.BeginPrivate(7);
  void* const block = pool.Allocate(8 * kMb, Stream(1));
  pool.Free(block);
  pool.EndPrivate();
  CHECK(IsFull(&pool, 8 * kMb, Stream(1)));
  pool.ReleasePrivate(7);
  CHECK(pool.Allocate(8 * kMb, Stream(1)) == block);
}
