#include "ops/pruning/tensor_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "ops/pruning/workers.h"
#include "ops/sparse-matmul/float_bits.h"

namespace flashllm::pruning {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 20;

class File {
 public:
  File(const std::string& path, int flags) : descriptor_(open(path.c_str(), flags | O_CLOEXEC)) {
    if (descriptor_ < 0) throw PruningError("cannot open " + path + ": " + std::strerror(errno));
  }
  ~File() { close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

/// Calls pread or pwrite until all bytes are through.
template <typename Transfer, typename Byte>
void Whole(const std::string& path, Transfer transfer, int file, Byte* bytes, int64_t count, int64_t offset) {
  while (count > 0) {
    const ssize_t moved = transfer(file, bytes, static_cast<size_t>(count), static_cast<off_t>(offset));
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) {
      throw PruningError("byte " + std::to_string(offset) + " of " + path + " cannot be read or written: " +
                         (moved == 0 ? "the file ends before; it may be cut off" : std::strerror(errno)));
    }
    bytes += moved;
    count -= moved;
    offset += moved;
  }
}

}  // namespace

Floats ReadTensor(const TensorPlace& place) {
  const File file(place.path, O_RDONLY);
  Floats values(static_cast<size_t>(place.elements));
  if (place.type == ValueType::kFloat32) {
    Whole(place.path, pread, file.get(), reinterpret_cast<char*>(values.data()), 4 * place.elements, place.offset);
    return values;
  }
  std::vector<uint16_t> block(static_cast<size_t>(std::min(kBlockElements, place.elements)));
  for (int64_t first = 0; first < place.elements; first += kBlockElements) {
    const int64_t count = std::min(kBlockElements, place.elements - first);
    Whole(place.path, pread, file.get(), reinterpret_cast<char*>(block.data()), 2 * count, place.offset + 2 * first);
    float* to = values.data() + first;
    const bool half = place.type == ValueType::kFloat16;
    for (int64_t i = 0; i < count; ++i) to[i] = half ? HalfToFloat(block[i]) : BFloat16ToFloat(block[i]);
  }
  return values;
}

void WriteTensor(const TensorPlace& place, const Floats& values) {
  const File file(place.path, O_WRONLY);
  const int64_t elements = static_cast<int64_t>(values.size());
  if (place.type == ValueType::kFloat32) {
    Whole(place.path, pwrite, file.get(), reinterpret_cast<const char*>(values.data()), 4 * elements, place.offset);
    return;
  }
  std::vector<uint16_t> block(static_cast<size_t>(std::min(kBlockElements, elements)));
  for (int64_t first = 0; first < elements; first += kBlockElements) {
    const int64_t count = std::min(kBlockElements, elements - first);
    const float* from = values.data() + first;
    const bool half = place.type == ValueType::kFloat16;
    for (int64_t i = 0; i < count; ++i) block[i] = half ? FloatToHalf(from[i]) : FloatToBFloat16(from[i]);
    Whole(place.path, pwrite, file.get(), reinterpret_cast<const char*>(block.data()), 2 * count,
          place.offset + 2 * first);
  }
}

}  // namespace flashllm::pruning
