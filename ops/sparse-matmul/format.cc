#include "ops/sparse-matmul/format.h"

#include <algorithm>
#include <cstring>

namespace flashllm {
namespace {

std::string Text(int64_t value) { return std::to_string(value); }

inline uint64_t LoadWord(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, 8);
  return word;
}

inline __attribute__((always_inline)) int64_t CountBitsBody(const uint8_t* bytes, int64_t length) {
  int64_t count = 0;
  for (int64_t at = 0; at < length; at += 8) count += __builtin_popcountll(LoadWord(bytes + at));
  return count;
}

int64_t CountBitsPortable(const uint8_t* bytes, int64_t length) { return CountBitsBody(bytes, length); }

#ifdef FLASHLLM_X86
__attribute__((target("popcnt"))) int64_t CountBitsPopcnt(const uint8_t* bytes, int64_t length) {
  return CountBitsBody(bytes, length);
}
#endif

using CountBitsFunction = int64_t (*)(const uint8_t*, int64_t);

CountBitsFunction ChooseCountBits() {
#ifdef FLASHLLM_X86
  if (__builtin_cpu_supports("popcnt")) return CountBitsPopcnt;
#endif
  return CountBitsPortable;
}

}  // namespace

// Multiplications cannot overflow: both factors are below 2³¹.
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

std::string CheckOffsets(const PackedWeightClaim& c) {
  int64_t begin = LoadOffset(c.row_offsets, 0);
  if (begin != 0) return "row_offsets[0] is " + Text(begin) + ", expected 0";
  for (int64_t m = 0; m < c.out_features; ++m) {
    const int64_t end = LoadOffset(c.row_offsets, m + 1);
    if (end < begin || end > c.nnz) {
      return "row_offsets[" + Text(m + 1) + "] is " + Text(end) + ", expected " + Text(begin) + " to " + Text(c.nnz);
    }
    begin = end;
  }
  if (begin != c.nnz) return "row_offsets ends with " + Text(begin) + ", expected nnz " + Text(c.nnz);
  return {};
}

void PartsCheck::Bitmap(int64_t at, const void* bytes, int64_t length) {
  const CountBitsFunction count_bits = ChooseCountBits();
  const auto* words = static_cast<const uint8_t*>(bytes);
  const int64_t row_bytes = BitmapRowBytes(claim_.in_features), end = at + length;
  const int tail = static_cast<int>(claim_.in_features % 64);
  while (at < end) {
    const int64_t row = at / row_bytes, row_end = (row + 1) * row_bytes;
    const int64_t here = std::min(row_end, end) - at;
    RowBits bits;
    bits.count = count_bits(words, here);
    if (at + here == row_end && tail != 0) bits.past_end = (LoadWord(words + here - 8) >> tail) != 0;
    if (here == row_bytes) {
      CheckRow(row, bits);
    } else {
      std::lock_guard<std::mutex> lock(mutex_);
      RowBits& known = cut_rows_[row];
      known.count += bits.count;
      known.past_end |= bits.past_end;
    }
    words += here;
    at += here;
  }
}

void PartsCheck::CheckRow(int64_t row, RowBits bits) {
  const int64_t expected = int64_t{LoadOffset(claim_.row_offsets, row + 1)} - LoadOffset(claim_.row_offsets, row);
  if (bits.past_end) {
    Wrong(row, "bitmap row " + Text(row) + " has a bit set past in_features " + Text(claim_.in_features) +
                   ", expected zeros");
  } else if (bits.count != expected) {
    Wrong(row, "bitmap row " + Text(row) + " has " + Text(bits.count) + " bits set, but row_offsets give the row " +
                   Text(expected) + " values");
  }
}

void PartsCheck::Values(int64_t at, const void* bytes, int64_t length) {
  const int64_t size = SizeOf(claim_.value_type);
  for (int64_t i = std::max<int64_t>(claim_.nnz * size - at, 0); i < length; ++i) {
    if (static_cast<const uint8_t*>(bytes)[i] == 0) continue;
    const int64_t value = (at + i) / size;
    return Wrong(claim_.out_features + value,
                 "values[" + Text(value) + "] is past nnz " + Text(claim_.nnz) + " and not zero");
  }
}

void PartsCheck::Wrong(int64_t at, const std::string& message) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!wrong_.empty() && wrong_at_ <= at) return;
  wrong_at_ = at;
  wrong_ = message;
}

std::string PartsCheck::Finish() {
  for (const auto& [row, bits] : cut_rows_) CheckRow(row, bits);
  return wrong_;
}

std::string Validate(const PackedWeightClaim& claim, bool verify_checksum, PackedWeight* out) {
  std::string error = CheckShapes(claim);
  if (error.empty()) error = CheckOffsets(claim);
  if (error.empty()) {
    PartsCheck parts(claim);
    parts.Bitmap(0, claim.bitmap, claim.bitmap_rows * claim.bitmap_cols);
    parts.Values(0, claim.values, claim.values_length * SizeOf(claim.value_type));
    error = parts.Finish();
  }
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
