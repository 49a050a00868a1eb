// Activations of all calibration tokens in a file that is mapped: in memory while there is room, on disk beyond that,
// and still there after an interruption.
#pragma once

#include <cstdint>
#include <string>

namespace flashllm::pruning {

/// [sequences, length, features] float32.
class ActivationFile {
 public:
  enum class Mode { kRead, kCreate };

  /// Opens a file of exactly `floats` elements, or makes one of zeros. Throws PruningError.
  ActivationFile(const std::string& path, int64_t floats, Mode mode);
  ~ActivationFile();
  ActivationFile(const ActivationFile&) = delete;
  ActivationFile& operator=(const ActivationFile&) = delete;

  float* data() { return data_; }

  /// Writes what was changed to the disk. Throws PruningError.
  void Sync();

 private:
  std::string path_;
  size_t bytes_ = 0;
  float* data_ = nullptr;
};

}  // namespace flashllm::pruning
