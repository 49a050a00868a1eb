#include "ops/sparse-matmul/format.h"

#include <cstring>
#include <map>
#include <mutex>
#include <utility>

namespace flashllm {
namespace {

std::string Text(int64_t value) { return std::to_string(value); }

// One row of a bitmap: how many bits are set, and whether any of them lies at or past in_features.
struct RowBits {
  int64_t count = 0;
  bool past_end = false;
};

inline uint64_t LoadWord(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, 8);
  return word;
}

inline __attribute__((always_inline)) RowBits CountRowBody(const uint8_t* row, int64_t in_features) {
  RowBits bits;
  const int64_t words = (in_features + 63) / 64;
  for (int64_t w = 0; w < words; ++w) bits.count += __builtin_popcountll(LoadWord(row + 8 * w));
  const int tail = static_cast<int>(in_features % 64);
  bits.past_end = tail != 0 && (LoadWord(row + 8 * (words - 1)) >> tail) != 0;
  return bits;
}

RowBits CountRowPortable(const uint8_t* row, int64_t in_features) { return CountRowBody(row, in_features); }

#ifdef FLASHLLM_X86
__attribute__((target("popcnt"))) RowBits CountRowPopcnt(const uint8_t* row, int64_t in_features) {
  return CountRowBody(row, in_features);
}
#endif

using CountRowFunction = RowBits (*)(const uint8_t*, int64_t);

CountRowFunction ChooseCountRow() {
#ifdef FLASHLLM_X86
  if (__builtin_cpu_supports("popcnt")) return CountRowPopcnt;
#endif
  return CountRowPortable;
}

// Everything that can be told without reading the parts. Multiplications cannot overflow: both factors are below 2³¹.
std::string CheckShapes(const PackedWeightClaim& c) {
  if (c.format_version != kFormatVersion) {
    return "format_version is " + Text(c.format_version) + ", expected " + Text(kFormatVersion) +
           ": install a version of onnxruntime-ep-flashllm that reads it, or rewrite the model with this one";
  }
  if (c.out_features < 1 || c.out_features > kMaxFeatures) {
    return "out_features is " + Text(c.out_features) + ", expected 1 to " + Text(kMaxFeatures);
  }
  if (c.in_features < 1 || c.in_features > kMaxFeatures) {
    return "in_features is " + Text(c.in_features) + ", expected 1 to " + Text(kMaxFeatures);
  }
  if (c.nnz < 0 || c.nnz > kMaxNnz) return "nnz is " + Text(c.nnz) + ", expected 0 to " + Text(kMaxNnz);
  if (c.nnz > c.out_features * c.in_features) {
    return "nnz is " + Text(c.nnz) + ", more than the weight's " + Text(c.out_features) + " x " + Text(c.in_features) +
           " elements";
  }
  if (c.value_type != ValueType::kFloat32 && c.value_type != ValueType::kFloat16 &&
      c.value_type != ValueType::kBFloat16) {
    return "values are of type " + Text(static_cast<int64_t>(c.value_type)) + ", expected float32, float16 or bfloat16";
  }
  const int64_t row_bytes = BitmapRowBytes(c.in_features);
  if (c.bitmap_rows != c.out_features || c.bitmap_cols != row_bytes) {
    return "bitmap has shape [" + Text(c.bitmap_rows) + ", " + Text(c.bitmap_cols) + "], expected [" +
           Text(c.out_features) + ", " + Text(row_bytes) + "] for " + Text(c.out_features) + " x " +
           Text(c.in_features);
  }
  if (c.row_offsets_length != c.out_features + 1) {
    return "row_offsets has " + Text(c.row_offsets_length) + " elements, expected " + Text(c.out_features + 1);
  }
  if (c.values_length != ValuesLength(c.nnz)) {
    return "values has " + Text(c.values_length) + " elements, expected " + Text(ValuesLength(c.nnz)) + " for nnz " +
           Text(c.nnz);
  }
  if (c.bitmap == nullptr || c.row_offsets == nullptr || c.values == nullptr) {
    return std::string(c.bitmap == nullptr        ? "bitmap"
                       : c.row_offsets == nullptr ? "row_offsets"
                                                  : "values") +
           " has no data";
  }
  return {};
}

/// Checks rows from `first` to before `last`. What comes before them is another call's to check: offsets are only
/// compared here, and the bitmap's size is known.
std::string CheckRows(const PackedWeightClaim& c, int64_t first, int64_t last) {
  const CountRowFunction count_row = ChooseCountRow();
  const int64_t row_bytes = BitmapRowBytes(c.in_features);
  int64_t begin = LoadOffset(c.row_offsets, first);
  if (first == 0 && begin != 0) return "row_offsets[0] is " + Text(begin) + ", expected 0";
  for (int64_t m = first; m < last; ++m) {
    const int64_t end = LoadOffset(c.row_offsets, m + 1);
    if (end < begin || end > c.nnz) {
      return "row_offsets[" + Text(m + 1) + "] is " + Text(end) + ", expected " + Text(begin) + " to " + Text(c.nnz);
    }
    const RowBits bits = count_row(c.bitmap + m * row_bytes, c.in_features);
    if (bits.past_end) {
      return "bitmap row " + Text(m) + " has a bit set past in_features " + Text(c.in_features) + ", expected zeros";
    }
    if (bits.count != end - begin) {
      return "bitmap row " + Text(m) + " has " + Text(bits.count) + " bits set, but row_offsets give the row " +
             Text(end - begin) + " values";
    }
    begin = end;
  }
  if (last == c.out_features && begin != c.nnz) {
    return "row_offsets ends with " + Text(begin) + ", expected nnz " + Text(c.nnz);
  }
  return {};
}

/// All rows; of several that are wrong the first is told.
std::string CheckAllRows(const PackedWeightClaim& c, const ForRows& for_rows) {
  if (!for_rows) return CheckRows(c, 0, c.out_features);
  std::mutex mutex;
  std::map<int64_t, std::string> errors;  // by row
  for_rows(c.out_features, [&](int64_t first, int64_t last) {
    std::string error = CheckRows(c, first, last);
    if (error.empty()) return;
    std::lock_guard<std::mutex> lock(mutex);
    errors.emplace(first, std::move(error));
  });
  return errors.empty() ? std::string() : errors.begin()->second;
}

std::string CheckPadding(const PackedWeightClaim& c) {
  const int64_t size = SizeOf(c.value_type);
  const uint8_t* bytes = static_cast<const uint8_t*>(c.values);
  for (int64_t i = c.nnz * size; i < c.values_length * size; ++i) {
    if (bytes[i] != 0) return "values[" + Text(i / size) + "] is past nnz " + Text(c.nnz) + " and not zero";
  }
  return {};
}

}  // namespace

std::string Validate(const PackedWeightClaim& claim, bool verify_checksum, PackedWeight* out, const ForRows& for_rows) {
  std::string error = CheckShapes(claim);
  if (error.empty()) error = CheckAllRows(claim, for_rows);
  if (error.empty()) error = CheckPadding(claim);
  if (!error.empty()) return error;
  PackedWeight weight;
  weight.out_features = claim.out_features;
  weight.in_features = claim.in_features;
  weight.nnz = claim.nnz;
  weight.value_type = claim.value_type;
  weight.bitmap = claim.bitmap;
  weight.row_offsets = claim.row_offsets;
  weight.values = claim.values;
  if (verify_checksum) {
    const uint32_t found = Checksum(weight);
    if (found != claim.checksum) return ChecksumMessage(found, claim.checksum);
  }
  *out = weight;
  return {};
}

std::string ChecksumMessage(uint32_t found, uint32_t expected) {
  return "checksum of the data is " + Text(found) + ", expected " + Text(expected) +
         ": the file was damaged or changed; rewrite the model from its source";
}

uint32_t Checksum(const PackedWeight& w) {
  uint32_t crc = Crc32c(w.bitmap, static_cast<size_t>(w.out_features * BitmapRowBytes(w.in_features)));
  crc = Crc32c(w.row_offsets, static_cast<size_t>(w.out_features + 1) * sizeof(int32_t), crc);
  return Crc32c(w.values, static_cast<size_t>(ValuesLength(w.nnz) * SizeOf(w.value_type)), crc);
}

}  // namespace flashllm
