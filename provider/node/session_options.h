// Session options as TypeScript checked and flattened them (NativeSessionOptions of provider/native.ts), given to ONNX
// Runtime.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::node {

/// A file mapped for reading.
class MappedFile {
 public:
  /// Throws Error (ORT_NO_SUCHFILE) where the file cannot be opened.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

/// The options and what they borrow: it must outlive the creation of the session.
struct SessionOptions {
  Owned<OrtSessionOptions> options;
  std::vector<std::unique_ptr<MappedFile>> files;
  std::vector<Napi::ObjectReference> buffers;
};

/// Throws Error for what ONNX Runtime refuses.
SessionOptions ReadSessionOptions(const Napi::Object& from);

}  // namespace flashllm::node
