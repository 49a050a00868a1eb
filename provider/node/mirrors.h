// Typed arrays and their copies on a GPU, for runs that are started before the one before has ended.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "provider/node/run_tensors.h"

namespace flashllm::node {

/// The mirrored tensors of one side of a prepared run. Between array and GPU each passes through pinned memory, of
/// which every start that is under way has its own: so the array is the caller's as soon as a start has begun, and
/// copies wait for nothing but the stream. `which`: bit i is for mirrored tensor i; those from 32 on are always meant.
class Mirrors {
 public:
  /// Starts that may be under way at once: while one computes, the next is there.
  static constexpr size_t kStarts = 2;

  /// `side` must outlive this.
  explicit Mirrors(const RunTensors& side);

  /// Makes sure that there is pinned memory. Throws Error.
  void Reserve(OrtAllocator* pinned, size_t start, uint32_t which);
  /// From the arrays into pinned memory, and back. On the thread of JavaScript.
  void Fill(size_t start, uint32_t which);
  void Read(size_t start, uint32_t which);
  /// Enqueues the copies to the GPU, and back.
  void Send(size_t start, uint32_t which, OrtSyncStream* stream) const;
  void Fetch(size_t start, uint32_t which, OrtSyncStream* stream) const;
  /// At once, between array and GPU: for runs that are waited for.
  void SendNow(uint32_t which) const;
  void FetchNow(uint32_t which) const;

 private:
  struct Mirror {
    OrtValue *array, *device;
    std::array<Owned<OrtValue>, kStarts> pinned;
  };
  enum class Way { kUp, kDown };
  void Copy(Way way, const size_t* start, uint32_t which, OrtSyncStream* stream) const;
  template <typename Do>
  void Each(uint32_t which, Do&& act);

  std::vector<Mirror> mirrors_;
};

}  // namespace flashllm::node
