#include "provider/ep/cuda/mapped_files.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "provider/ort_api.h"

namespace flashllm::ep {
namespace {

bool SameAt(FilePlace place, const char* memory, size_t bytes) {
  char found[64];
  const size_t looked = std::min(bytes, sizeof found);
  ReadFile(place, found, looked);
  return std::memcmp(found, memory, looked) == 0;
}

/// The last bytes come first: where they are there, the file has the others too.
bool IsSame(const FilePlace& place, const char* memory, size_t bytes) {
  constexpr size_t kApart = size_t{2} << 20, kLook = 64;
  const auto same = [&](size_t at) {
    return SameAt({place.file, place.offset + static_cast<int64_t>(at)}, memory + at, bytes - at);
  };
  if (!same(bytes - std::min(bytes, kLook))) return false;
  for (size_t at = 0; at < bytes; at += kApart) {
    if (!same(at)) return false;
  }
  return true;
}

}  // namespace

FilePlace MappedFiles::Find(const void* from, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(from), end = begin + bytes;
  const Mapping* mapping = Around(begin, end);
  if (mapping == nullptr) {
    ReadMappings();
    mapping = Around(begin, end);
  }
  if (mapping == nullptr || mapping->inode == 0) return {};
  const FilePlace place{Open(*mapping), mapping->offset + static_cast<int64_t>(begin - mapping->begin)};
  return place.file >= 0 && IsSame(place, static_cast<const char*>(from), bytes) ? place : FilePlace{};
}

const MappedFiles::Mapping* MappedFiles::Around(uintptr_t begin, uintptr_t end) const {
  const auto after = std::upper_bound(mappings_.begin(), mappings_.end(), begin,
                                      [](uintptr_t at, const Mapping& mapping) { return at < mapping.begin; });
  if (after == mappings_.begin()) return nullptr;
  const Mapping& mapping = *std::prev(after);
  return end <= mapping.end ? &mapping : nullptr;
}

void MappedFiles::ReadMappings() {
  mappings_.clear();
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> maps(std::fopen("/proc/self/maps", "re"), std::fclose);
  if (maps == nullptr) return;
  char line[PATH_MAX + 100];
  while (std::fgets(line, sizeof line, maps.get()) != nullptr) {
    // proc_pid_maps(5): 7f0c5e000000-7f0c5e021000 rw-p 00000000 fd:00 1234   /a/path
    unsigned long long begin, end, offset, inode;
    unsigned major, minor;
    int path_at = 0;
    if (std::sscanf(line, "%llx-%llx %*s %llx %x:%x %llu %n", &begin, &end, &offset, &major, &minor, &inode, &path_at) <
        6) {
      continue;
    }
    std::string path = line + path_at;
    if (!path.empty() && path.back() == '\n') path.pop_back();
    mappings_.push_back({static_cast<uintptr_t>(begin), static_cast<uintptr_t>(end), static_cast<int64_t>(offset),
                         makedev(major, minor), inode, path});
  }
}

/// Only what is mapped, not what has come to lie under its name.
int MappedFiles::Open(const Mapping& mapping) {
  const std::pair<uint64_t, uint64_t> key(mapping.device, mapping.inode);
  const auto found = files_.find(key);
  if (found != files_.end()) return found->second;
  int file = open(mapping.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status;
  if (file >= 0 && (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_dev != mapping.device ||
                    status.st_ino != mapping.inode)) {
    close(file);
    file = -1;
  }
  return files_[key] = file;
}

void MappedFiles::Close() noexcept {
  for (const auto& [key, file] : files_) {
    if (file >= 0) close(file);
  }
  files_.clear();
  mappings_.clear();
}

void ReadFile(const FilePlace& place, void* to, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const ssize_t got =
        pread(place.file, static_cast<char*>(to) + at, bytes - at, place.offset + static_cast<int64_t>(at));
    if (got > 0) {
      at += static_cast<size_t>(got);
    } else if (got == 0 || errno != EINTR) {
      throw Error(ORT_FAIL, std::string("flashllm: the model's external data could not be read: ") +
                                (got == 0 ? "the file has become shorter" : std::strerror(errno)));
    }
  }
}

}  // namespace flashllm::ep
