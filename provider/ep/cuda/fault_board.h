// What kernels find wrong in data that only the device sees: indices, lengths. A word for each node, which the device
// sets and the host reads when a run has ended.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

namespace flashllm::ep {

class FaultBoard {
 public:
  explicit FaultBoard(int device) : device_(device) {}
  ~FaultBoard();
  FaultBoard(const FaultBoard&) = delete;

  /// A word of mapped host memory for a node. The pointer is the device's. Throws Error.
  uint32_t* Add(const std::string& node);

  /// Throws Error (ORT_INVALID_ARGUMENT) that names a node and what it found, if any word is set; clears all. The
  /// streams of the run must have been waited for.
  void Check();

 private:
  struct Page {
    uint32_t* host = nullptr;
    uint32_t* device = nullptr;
  };
  static constexpr size_t kWordsOfPage = 1024;
  const int device_;
  std::mutex mutex_;
  std::vector<Page> pages_;
  std::vector<std::string> nodes_;
};

}  // namespace flashllm::ep
