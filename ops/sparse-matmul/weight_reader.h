// Dense weights as they lie in files (or memory), read strip by strip as float32 [rows, in_features].
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/sparse-matmul/format.h"

namespace flashllm {

/// A failure of packing, with what was found and expected. The caller turns it into an error of its own language.
class PackError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Layout : uint8_t { kOutIn, kInOut };  // row-major [out_features, in_features], or its transpose

/// A dense weight, little-endian: `offset` bytes into the file `path`, or at `data` in memory where that is not null.
struct WeightSegment {
  std::string path;
  int64_t offset = 0;
  const void* data = nullptr;
  ValueType type = ValueType::kFloat32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  Layout layout = Layout::kOutIn;
};

/// Buffers of one thread, kept between reads.
struct ReadBuffers {
  std::vector<uint8_t> raw;
  std::vector<float> panel;
};

/// Segments joined along out_features. Read() may be called from several threads at once.
class WeightReader {
 public:
  /// Opens the files and checks that they hold the segments. Throws PackError.
  WeightReader(std::vector<WeightSegment> segments, float scale);
  ~WeightReader();
  WeightReader(const WeightReader&) = delete;
  WeightReader& operator=(const WeightReader&) = delete;

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  int64_t bytes() const { return bytes_; }

  /// How many rows to read at once: few enough to bound memory, enough that a transposed layout is read in long runs.
  int64_t rows_per_strip() const { return rows_per_strip_; }

  /// Whether every value, scaled, has at most a float16's or a bfloat16's mantissa: its low 13 bits as float32 are
  /// zero.
  bool values_are_short() const { return values_are_short_; }

  /// Reads rows [begin, end) times the scale into out [end - begin, in_features]. Throws PackError.
  void Read(int64_t begin, int64_t end, float* out, ReadBuffers* buffers) const;

 private:
  void ReadSegmentRows(size_t index, int64_t begin, int64_t end, float* out, ReadBuffers* buffers) const;
  void ReadTransposed(size_t index, int64_t begin, int64_t end, float* out, ReadBuffers* buffers) const;
  void ReadBytes(size_t index, int64_t offset, int64_t length, uint8_t* out) const;

  std::vector<WeightSegment> segments_;
  std::vector<int> files_;
  float scale_;
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  int64_t bytes_ = 0;
  int64_t rows_per_strip_ = 1;
  bool values_are_short_ = true;
};

/// Bytes [offset, offset + length) of a file. Throws PackError where it has fewer.
std::vector<uint8_t> ReadFilePart(const std::string& path, int64_t offset, int64_t length);

}  // namespace flashllm
