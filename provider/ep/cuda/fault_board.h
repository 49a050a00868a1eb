// What kernels find wrong in data that only the device sees: indices, lengths. On every stream each node has a word,
// which the device sets and the host reads when the stream has been waited for: runs at once do not see each other's.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace flashllm::ep {

class FaultBoard {
 public:
  explicit FaultBoard(int device) : device_(device) {}
  ~FaultBoard();
  FaultBoard(const FaultBoard&) = delete;

  /// A node's number.
  size_t Add(const std::string& node);

  /// A node's word of a stream, in mapped host memory. The pointer is the device's. Throws Error.
  uint32_t* Word(size_t node, cudaStream_t stream);

  /// Throws Error (ORT_INVALID_ARGUMENT) that names a node and what it found, if any word of the stream is set; clears
  /// all. The stream must have been waited for.
  void Check(cudaStream_t stream);

  /// Gives a stream's words back. Nothing that could set them is under way.
  void Forget(cudaStream_t stream) noexcept;

 private:
  struct Page {
    uint32_t* host = nullptr;
    uint32_t* device = nullptr;
  };
  static constexpr size_t kWordsOfPage = 1024;
  Page MakePage() const;

  const int device_;
  std::mutex mutex_;
  std::vector<std::string> nodes_;
  std::map<cudaStream_t, std::vector<Page>> pages_;
};

}  // namespace flashllm::ep
