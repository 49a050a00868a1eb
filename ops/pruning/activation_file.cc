#include "ops/pruning/activation_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "ops/pruning/workers.h"

namespace flashllm::pruning {
namespace {

[[noreturn]] void Fail(const std::string& path, const std::string& what, int error) {
  throw PruningError("cannot " + what + " the activations in " + path + ": " + std::strerror(error));
}

}  // namespace

ActivationFile::ActivationFile(const std::string& path, int64_t floats, Mode mode)
    : path_(path), bytes_(static_cast<size_t>(floats) * sizeof(float)) {
  const bool create = mode == Mode::kCreate;
  const int file = open(path.c_str(), create ? O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC : O_RDONLY | O_CLOEXEC, 0644);
  if (file < 0) Fail(path, "open", errno);
  int error = 0;
  struct stat status = {};
  // Allocated now: a disk that fills up later would end the process by SIGBUS.
  if (create) {
    error = posix_fallocate(file, 0, static_cast<off_t>(bytes_));
  } else if (fstat(file, &status) != 0) {
    error = errno;
  } else if (static_cast<size_t>(status.st_size) != bytes_) {
    close(file);
    throw PruningError("the activations in " + path + " are " + std::to_string(status.st_size) +
                       " bytes long, expected " + std::to_string(bytes_) +
                       ": remove the folder that they are in and start again");
  }
  void* mapped = MAP_FAILED;
  if (error == 0) {
    mapped = mmap(nullptr, bytes_, create ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) error = errno;
  }
  close(file);
  if (error != 0) Fail(path, create ? "make room for" : "map", error);
  data_ = static_cast<float*>(mapped);
}

ActivationFile::~ActivationFile() { munmap(data_, bytes_); }

void ActivationFile::Sync() {
  if (msync(data_, bytes_, MS_SYNC) != 0) Fail(path_, "write", errno);
}

}  // namespace flashllm::pruning
