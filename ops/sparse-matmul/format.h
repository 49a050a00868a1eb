// The packed weight format of ai.flashllm::SparseMatMul, version 1: docs/format.md is its definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace flashllm {

constexpr int64_t kFormatVersion = 1;
/// Elements that a kernel may read past the last stored value: `values` is zero-padded by at least this many.
constexpr int64_t kValuesPadding = 32;
/// `values` has a multiple of this many elements.
constexpr int64_t kValuesMultiple = 64;
/// Largest out_features and in_features: products of the two, and bytes of a bitmap, stay far inside int64.
constexpr int64_t kMaxFeatures = (int64_t{1} << 30);
/// Largest nnz: every position in `values`, its padding included, is an int32.
constexpr int64_t kMaxNnz = (int64_t{1} << 31) - 1 - 128;

enum class ValueType : uint8_t { kFloat32, kFloat16, kBFloat16 };

/// Bytes of one element.
constexpr int64_t SizeOf(ValueType type) { return type == ValueType::kFloat32 ? 4 : 2; }

/// Bytes of one row of the bitmap, a multiple of 8.
constexpr int64_t BitmapRowBytes(int64_t in_features) { return (in_features + 63) / 64 * 8; }

/// Elements of the `values` part for `nnz` stored values.
constexpr int64_t ValuesLength(int64_t nnz) {
  return (nnz + kValuesPadding + kValuesMultiple - 1) / kValuesMultiple * kValuesMultiple;
}

/// A packed weight as it lies in memory or in a file. Borrowed pointers; trusted only after Validate().
struct PackedWeight {
  int64_t out_features = 0;  // M
  int64_t in_features = 0;   // K
  int64_t nnz = 0;
  ValueType value_type = ValueType::kFloat16;
  const uint8_t* bitmap = nullptr;       // [M, BitmapRowBytes(K)]
  const int32_t* row_offsets = nullptr;  // [M + 1]
  const void* values = nullptr;          // [ValuesLength(nnz)]
};

/// What a model file claims about a packed weight: shapes of the parts and attributes, none of it trusted.
struct PackedWeightClaim {
  int64_t format_version = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t nnz = 0;
  uint32_t checksum = 0;
  ValueType value_type = ValueType::kFloat16;
  const uint8_t* bitmap = nullptr;
  int64_t bitmap_rows = 0, bitmap_cols = 0;  // its shape
  const int32_t* row_offsets = nullptr;
  int64_t row_offsets_length = 0;
  const void* values = nullptr;
  int64_t values_length = 0;  // elements
};

/// Checks every dimension, offset and count of a claim against docs/format.md, and the checksum if asked.
/// Returns an empty string and fills `out`, or a message: what was found, what was expected. Reads within the claimed
/// shapes only.
std::string Validate(const PackedWeightClaim& claim, bool verify_checksum, PackedWeight* out);

// The parts of Validate(), for who reads a weight only once, in pieces: CheckShapes, CheckOffsets, then a PartsCheck.
// Each returns an empty string or a message.

/// Whatever can be told without reading the parts.
std::string CheckShapes(const PackedWeightClaim& claim);
/// The row offsets of a claim whose shapes are right.
std::string CheckOffsets(const PackedWeightClaim& claim);

/// Checks bitmap and values of a claim whose offsets are right. They are given in pieces, in any order and by several
/// threads. `claim` must outlive it; of its parts only row_offsets is read.
class PartsCheck {
 public:
  explicit PartsCheck(const PackedWeightClaim& claim) : claim_(claim) {}
  /// `length` bytes of a part from `at` on. Both are multiples of 8.
  void Bitmap(int64_t at, const void* bytes, int64_t length);
  void Values(int64_t at, const void* bytes, int64_t length);
  /// After all: of several errors the first in the weight is told.
  std::string Finish();

 private:
  /// One row of a bitmap: how many bits are set, and whether any of them lies at or past in_features.
  struct RowBits {
    int64_t count = 0;
    bool past_end = false;
  };

  void CheckRow(int64_t row, RowBits bits);
  /// `at`: a row; from out_features on, a value. Only the first is kept: a damaged weight may have one in every row.
  void Wrong(int64_t at, const std::string& message);

  const PackedWeightClaim& claim_;
  std::mutex mutex_;
  std::map<int64_t, RowBits> cut_rows_;  // what is known of rows that lie in several pieces
  int64_t wrong_at_ = 0;
  std::string wrong_;
};

/// What Validate() says of a checksum that does not fit.
std::string ChecksumMessage(uint32_t found, uint32_t expected);

/// CRC-32C (Castagnoli, RFC 3720) of `bytes`, continued from `crc` (0 to start). Uses SSE4.2 where the CPU has it.
uint32_t Crc32c(const void* bytes, size_t length, uint32_t crc = 0);

/// CRC-32C of a and b joined, from those of `a` and of `b` (`second_length` bytes): checksums of pieces made in
/// parallel.
uint32_t Crc32cCombine(uint32_t first, uint32_t second, uint64_t second_length);

/// row_offsets[i]. The parts of a model in memory may lie at any address, so they are read without assuming alignment.
inline int32_t LoadOffset(const int32_t* row_offsets, int64_t i) {
  int32_t value;
  std::memcpy(&value, reinterpret_cast<const char*>(row_offsets) + 4 * i, sizeof(value));
  return value;
}

/// The checksum attribute: CRC-32C over bitmap, row_offsets and values, in this order, padding included.
uint32_t Checksum(const PackedWeight& weight);

}  // namespace flashllm
