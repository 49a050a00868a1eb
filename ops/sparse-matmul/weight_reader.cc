#include "ops/sparse-matmul/weight_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "ops/sparse-matmul/float_bits.h"

namespace flashllm {
namespace {

// Elements of a strip: 16 MB as float32. A strip of a transposed layout is read in runs of rows_per_strip elements.
constexpr int64_t kStripElements = int64_t{4} << 20;
// Columns of W that are transposed at a time: the panel of a strip stays in a second-level cache.
constexpr int64_t kPanelColumns = 32;

void ToFloat(const uint8_t* raw, ValueType type, int64_t count, float scale, float* out) {
  if (type == ValueType::kFloat32) {
    std::memcpy(out, raw, static_cast<size_t>(count) * sizeof(float));
  } else {
    const bool half = type == ValueType::kFloat16;
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, raw + 2 * i, sizeof(bits));
      out[i] = half ? HalfToFloat(bits) : BFloat16ToFloat(bits);
    }
  }
  if (scale != 1.0f) {
    for (int64_t i = 0; i < count; ++i) out[i] *= scale;
  }
}

std::string Describe(const WeightSegment& s) {
  return s.path + " (" + std::to_string(s.out_features) + " x " + std::to_string(s.in_features) + " at byte " +
         std::to_string(s.offset) + ")";
}

int64_t BytesOf(const WeightSegment& s) { return s.out_features * s.in_features * SizeOf(s.type); }

// Opens a file and checks that it has `length` bytes at `offset`.
int OpenChecked(const std::string& path, int64_t offset, int64_t length, const std::string& what) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw PackError("cannot open " + path + ": " + std::strerror(errno));
  struct stat status;
  const bool known = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  if (!known || offset > status.st_size || length > status.st_size - offset) {
    close(file);
    throw PackError("cannot read " + what + ": expected " + std::to_string(length) + " bytes there, the file has " +
                    std::to_string(known ? status.st_size : 0) + " in all. Is it complete?");
  }
  return file;
}

// `position` is in the file.
void ReadFully(int file, int64_t position, int64_t length, uint8_t* out, const std::string& path) {
  while (length > 0) {
    const ssize_t got = pread(file, out, static_cast<size_t>(length), position);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw PackError("cannot read " + path + " at byte " + std::to_string(position) + ": " +
                      (got < 0 ? std::strerror(errno) : "the file became shorter while it was read"));
    }
    out += got;
    position += got;
    length -= got;
  }
}

}  // namespace

WeightReader::WeightReader(std::vector<WeightSegment> segments, float scale)
    : segments_(std::move(segments)), scale_(scale) {
  if (segments_.empty()) throw PackError("no weight segments were given, expected at least one");
  if (!std::isfinite(scale)) throw PackError("scale is " + std::to_string(scale) + ", expected a finite number");
  in_features_ = segments_[0].in_features;
  bool transposed = false;
  for (const WeightSegment& s : segments_) {
    if (s.out_features < 1 || s.in_features < 1 || s.out_features > kMaxFeatures || s.in_features > kMaxFeatures ||
        s.offset < 0) {
      throw PackError("bad weight segment " + Describe(s) + ": expected dimensions from 1 to " +
                      std::to_string(kMaxFeatures) + " and an offset of 0 or more");
    }
    if (s.in_features != in_features_) {
      throw PackError("weight segments differ in in_features: " + std::to_string(in_features_) + " and " +
                      std::to_string(s.in_features));
    }
    out_features_ += s.out_features;
    bytes_ += BytesOf(s);
    transposed |= s.layout == Layout::kInOut;
    values_are_short_ &= s.type != ValueType::kFloat32 && scale == 1.0f;
  }
  if (out_features_ > kMaxFeatures) {
    throw PackError("weight segments join to " + std::to_string(out_features_) + " out_features, expected at most " +
                    std::to_string(kMaxFeatures));
  }
  rows_per_strip_ = std::max<int64_t>(1, kStripElements / (transposed ? 1 : 2) / in_features_);
  files_.assign(segments_.size(), -1);
  try {
    for (size_t i = 0; i < segments_.size(); ++i) {
      const WeightSegment& s = segments_[i];
      if (s.data == nullptr) files_[i] = OpenChecked(s.path, s.offset, BytesOf(s), "the weight " + Describe(s));
    }
  } catch (...) {
    for (int file : files_) {
      if (file >= 0) close(file);
    }
    throw;
  }
}

WeightReader::~WeightReader() {
  for (int file : files_) {
    if (file >= 0) close(file);
  }
}

void WeightReader::Read(int64_t begin, int64_t end, float* out, ReadBuffers* buffers) const {
  int64_t first = 0;  // row of the joined weight at which a segment begins
  for (size_t i = 0; i < segments_.size() && first < end; ++i) {
    const int64_t last = first + segments_[i].out_features;
    const int64_t from = std::max(begin, first), to = std::min(end, last);
    if (from < to) {
      float* rows = out + (from - begin) * in_features_;
      if (segments_[i].layout == Layout::kOutIn) {
        ReadSegmentRows(i, from - first, to - first, rows, buffers);
      } else {
        ReadTransposed(i, from - first, to - first, rows, buffers);
      }
    }
    first = last;
  }
}

void WeightReader::ReadSegmentRows(size_t index, int64_t begin, int64_t end, float* out, ReadBuffers* buffers) const {
  const WeightSegment& s = segments_[index];
  const int64_t size = SizeOf(s.type);
  const int64_t count = (end - begin) * in_features_;
  buffers->raw.resize(static_cast<size_t>(count * size));
  ReadBytes(index, begin * in_features_ * size, count * size, buffers->raw.data());
  ToFloat(buffers->raw.data(), s.type, count, scale_, out);
}

void WeightReader::ReadTransposed(size_t index, int64_t begin, int64_t end, float* out, ReadBuffers* buffers) const {
  const WeightSegment& s = segments_[index];
  const int64_t size = SizeOf(s.type);
  const int64_t rows = end - begin;
  const int64_t most_columns = std::min(kPanelColumns, in_features_);  // of few, a strip has many rows
  buffers->raw.resize(static_cast<size_t>(most_columns * rows * size));
  buffers->panel.resize(static_cast<size_t>(most_columns * rows));
  float* panel = buffers->panel.data();  // [columns, rows]
  for (int64_t k0 = 0; k0 < in_features_; k0 += most_columns) {
    const int64_t columns = std::min(most_columns, in_features_ - k0);
    if (rows == s.out_features) {
      ReadBytes(index, k0 * rows * size, columns * rows * size, buffers->raw.data());
    } else {
      for (int64_t k = 0; k < columns; ++k) {
        const int64_t offset = ((k0 + k) * s.out_features + begin) * size;
        ReadBytes(index, offset, rows * size, buffers->raw.data() + k * rows * size);
      }
    }
    ToFloat(buffers->raw.data(), s.type, columns * rows, scale_, panel);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < columns; ++k) out[r * in_features_ + k0 + k] = panel[k * rows + r];
    }
  }
}

void WeightReader::ReadBytes(size_t index, int64_t offset, int64_t length, uint8_t* out) const {
  const WeightSegment& s = segments_[index];
  if (s.data != nullptr) {
    std::memcpy(out, static_cast<const uint8_t*>(s.data) + offset, static_cast<size_t>(length));
    return;
  }
  ReadFully(files_[index], s.offset + offset, length, out, s.path);
}

std::vector<uint8_t> ReadFilePart(const std::string& path, int64_t offset, int64_t length) {
  const int file = OpenChecked(path, offset, length, path + " at byte " + std::to_string(offset));
  std::vector<uint8_t> bytes(static_cast<size_t>(length));
  try {
    ReadFully(file, offset, length, bytes.data(), path);
  } catch (...) {
    close(file);
    throw;
  }
  close(file);
  return bytes;
}

}  // namespace flashllm
