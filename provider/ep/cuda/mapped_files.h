// Which file some memory is mapped from. Reading from the file costs less than touching a mapping for the first time,
// which enters each page of it into a table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace flashllm::ep {

/// Bytes of an open file; `file` is -1 where memory has to be read itself.
struct FilePlace {
  int file = -1;
  int64_t offset = 0;
};

/// The process's mappings as they were when they were asked for first, and the files, open. For one thread at a time.
class MappedFiles {
 public:
  MappedFiles() = default;
  ~MappedFiles() { Close(); }
  MappedFiles(const MappedFiles&) = delete;

  /// Where memory was mapped from. Looks at some places whether it holds what the file does: the table may be older
  /// than a mapping. Throws Error where the file is shorter by now; the memory there is not touched.
  FilePlace Find(const void* from, size_t bytes);
  void Close() noexcept;

 private:
  struct Mapping {
    uintptr_t begin, end;
    int64_t offset;
    uint64_t device, inode;  // inode 0: of no file
    std::string path;
  };

  const Mapping* Around(uintptr_t begin, uintptr_t end) const;
  void ReadMappings();
  int Open(const Mapping& mapping);

  std::vector<Mapping> mappings_;                       // by address
  std::map<std::pair<uint64_t, uint64_t>, int> files_;  // by device and inode; -1: not to be read
};

/// Reads all of `bytes`. Throws Error where the file fails or is shorter.
void ReadFile(const FilePlace& place, void* to, size_t bytes);

}  // namespace flashllm::ep
