#include "ops/sparse-matmul/packer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "ops/sparse-matmul/float_bits.h"
#include "ops/sparse-matmul/strip_source.h"

namespace flashllm {
namespace {

// Where the parts of a packed weight go. Called from several threads, for disjoint ranges.
class Sink {
 public:
  virtual ~Sink() = default;
  enum Part { kBitmap, kRowOffsets, kValues };
  virtual void Write(Part part, int64_t offset, const void* bytes, int64_t length) = 0;
};

class FileSink final : public Sink {
 public:
  explicit FileSink(const PackDestination& destination) : path_(destination.path) {
    offsets_[kBitmap] = destination.bitmap_offset;
    offsets_[kRowOffsets] = destination.row_offsets_offset;
    offsets_[kValues] = destination.values_offset;
    for (int64_t offset : offsets_) {
      if (offset < 0) throw PackError("destination offset is " + std::to_string(offset) + ", expected 0 or more");
    }
    file_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) throw PackError("cannot open " + path_ + " for writing: " + std::strerror(errno));
  }
  ~FileSink() override { close(file_); }

  void Write(Part part, int64_t offset, const void* bytes, int64_t length) override {
    const char* data = static_cast<const char*>(bytes);
    offset += offsets_[part];
    while (length > 0) {
      const ssize_t wrote = pwrite(file_, data, static_cast<size_t>(length), offset);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) {
        throw PackError("cannot write " + std::to_string(length) + " bytes to " + path_ + ": " + std::strerror(errno) +
                        (errno == ENOSPC ? ". Free some space or choose another folder" : ""));
      }
      data += wrote;
      offset += wrote;
      length -= wrote;
    }
  }

 private:
  std::string path_;
  int64_t offsets_[3];
  int file_;
};

class MemorySink final : public Sink {
 public:
  explicit MemorySink(OwnedPackedWeight* weight) : weight_(weight) {}
  void Write(Part part, int64_t offset, const void* bytes, int64_t length) override {
    uint8_t* base = part == kBitmap   ? weight_->bitmap.data()
                    : part == kValues ? weight_->values.data()
                                      : reinterpret_cast<uint8_t*>(weight_->row_offsets.data());
    if (length > 0) std::memcpy(base + offset, bytes, static_cast<size_t>(length));
  }

 private:
  OwnedPackedWeight* weight_;
};

// Splits rows of floats into bitmap, offsets from the first row on, and the stored values.
void Compress(int64_t rows, int64_t columns, Worker* w) {
  const int64_t row_bytes = BitmapRowBytes(columns);
  w->bitmap.assign(static_cast<size_t>(rows * row_bytes), 0);
  w->row_offsets.resize(static_cast<size_t>(rows + 1));
  w->stored.resize(static_cast<size_t>(rows * columns + 1));  // one more: it is written before it is known to stay
  float* stored = w->stored.data();
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r) {
    w->row_offsets[r] = static_cast<int32_t>(count);
    const float* row = w->dense.data() + r * columns;
    uint8_t* bits = w->bitmap.data() + r * row_bytes;
    for (int64_t k = 0; k < columns; k += 8) {
      const int64_t end = std::min<int64_t>(8, columns - k);
      unsigned mask = 0;
      for (int64_t i = 0; i < end; ++i) {
        const bool keep = row[k + i] != 0;  // NaN is kept
        stored[count] = row[k + i];
        count += keep;
        mask |= static_cast<unsigned>(keep) << i;
      }
      bits[k / 8] = static_cast<uint8_t>(mask);
    }
  }
  w->row_offsets[rows] = static_cast<int32_t>(count);
}

const char* NameOf(ValueType type) {
  return type == ValueType::kFloat32 ? "float32" : type == ValueType::kFloat16 ? "float16" : "bfloat16";
}

void ConvertValues(int64_t count, ValueType type, Worker* w) {
  w->values.resize(static_cast<size_t>(count * SizeOf(type)));
  if (count == 0) return;
  if (type == ValueType::kFloat32) {
    std::memcpy(w->values.data(), w->stored.data(), static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float value = w->stored[i];
    const bool half = type == ValueType::kFloat16;
    const uint16_t bits = half ? FloatToHalf(value) : FloatToBFloat16(value);
    const uint16_t infinity = half ? 0x7C00 : 0x7F80;
    if ((bits & 0x7FFF) == infinity && IsFinite(value)) {
      throw PackError("the weight holds " + std::to_string(value) + ", which overflows " + NameOf(type) + ": choose " +
                      (half ? "bfloat16 or " : "") + "float32 values");
    }
    std::memcpy(w->values.data() + 2 * i, &bits, sizeof(bits));
  }
}

// The CRC-32C of one part, from those of its strips.
class PartChecksum {
 public:
  explicit PartChecksum(int64_t strips) : pieces_(static_cast<size_t>(strips)) {}
  void Set(int64_t strip, const void* bytes, int64_t length) {
    pieces_[static_cast<size_t>(strip)] = {Crc32c(bytes, static_cast<size_t>(length)), length};
  }
  uint32_t Append(uint32_t crc) const {
    for (const Piece& piece : pieces_) crc = Crc32cCombine(crc, piece.crc, static_cast<uint64_t>(piece.length));
    return crc;
  }

 private:
  struct Piece {
    uint32_t crc = 0;
    int64_t length = 0;
  };
  std::vector<Piece> pieces_;
};

void CheckNnz(int64_t nnz) {
  if (nnz > kMaxNnz) {
    throw PackError("the weight has " + std::to_string(nnz) + " nonzeros, and the format holds at most " +
                    std::to_string(kMaxNnz) + ": leave it dense or split it along out_features");
  }
}

PackResult Pack(StripSource* source, ValueType type, Sink* sink) {
  const int64_t columns = source->reader().in_features();
  const int64_t row_bytes = BitmapRowBytes(columns);
  StripRunner& runner = source->runner();
  std::vector<Worker> workers(static_cast<size_t>(runner.threads()));
  PartChecksum bitmap_crc(runner.strips()), offsets_crc(runner.strips()), values_crc(runner.strips());
  OrderedTotal stored;
  const auto pack_strip = [&](int64_t strip, int64_t begin, int64_t end, int worker) {
    Worker& w = workers[worker];
    const int64_t rows = end - begin;
    source->Read(begin, end, &w);
    source->Prune(strip, rows, &w);
    Compress(rows, columns, &w);
    const int64_t count = w.row_offsets[rows];
    ConvertValues(count, type, &w);
    const int64_t first = stored.Take(strip, count);
    CheckNnz(first + count);
    for (int32_t& offset : w.row_offsets) offset += static_cast<int32_t>(first);
    sink->Write(Sink::kBitmap, begin * row_bytes, w.bitmap.data(), rows * row_bytes);
    sink->Write(Sink::kRowOffsets, begin * 4, w.row_offsets.data(), rows * 4);
    sink->Write(Sink::kValues, first * SizeOf(type), w.values.data(), count * SizeOf(type));
    bitmap_crc.Set(strip, w.bitmap.data(), rows * row_bytes);
    offsets_crc.Set(strip, w.row_offsets.data(), rows * 4);
    values_crc.Set(strip, w.values.data(), count * SizeOf(type));
  };
  runner.Pass(pack_strip, [&] {
    stored.Abort();
    source->Abort();
  });

  const int64_t nnz = stored.total();
  const int32_t last = static_cast<int32_t>(nnz);
  sink->Write(Sink::kRowOffsets, source->reader().out_features() * 4, &last, sizeof(last));
  const std::vector<uint8_t> padding(static_cast<size_t>((ValuesLength(nnz) - nnz) * SizeOf(type)));
  sink->Write(Sink::kValues, nnz * SizeOf(type), padding.data(), static_cast<int64_t>(padding.size()));
  uint32_t crc = bitmap_crc.Append(0);
  crc = Crc32c(&last, sizeof(last), offsets_crc.Append(crc));
  crc = Crc32c(padding.data(), padding.size(), values_crc.Append(crc));
  return {nnz, crc};
}

}  // namespace

PackResult PackWeight(const std::vector<WeightSegment>& segments, const WeightOptions& options, ValueType value_type,
                      const PackDestination& destination, const PackControl& control) {
  StripSource source(segments, options, control);
  FileSink sink(destination);
  return Pack(&source, value_type, &sink);
}

OwnedPackedWeight PackInMemory(const std::vector<WeightSegment>& segments, const WeightOptions& options,
                               ValueType value_type, const PackControl& control) {
  const WeightAnalysis analysis = AnalyzeWeight(segments, options, control);
  CheckNnz(analysis.nnz);
  OwnedPackedWeight weight;
  weight.bitmap.resize(static_cast<size_t>(analysis.out_features * BitmapRowBytes(analysis.in_features)));
  weight.row_offsets.resize(static_cast<size_t>(analysis.out_features + 1));
  weight.values.resize(static_cast<size_t>(ValuesLength(analysis.nnz) * SizeOf(value_type)));
  MemorySink sink(&weight);
  StripSource source(segments, options, control);
  const PackResult result = Pack(&source, value_type, &sink);
  weight.checksum = result.checksum;
  weight.view.out_features = analysis.out_features;
  weight.view.in_features = analysis.in_features;
  weight.view.nnz = result.nnz;
  weight.view.value_type = value_type;
  weight.view.bitmap = weight.bitmap.data();
  weight.view.row_offsets = weight.row_offsets.data();
  weight.view.values = weight.values.data();
  return weight;
}

void UnpackWeight(const PackedWeight& weight, float* out) {
  const int64_t row_bytes = BitmapRowBytes(weight.in_features);
  const uint8_t* values = static_cast<const uint8_t*>(weight.values);
  int64_t next = 0;
  for (int64_t m = 0; m < weight.out_features; ++m) {
    const uint8_t* bits = weight.bitmap + m * row_bytes;
    for (int64_t k = 0; k < weight.in_features; ++k) {
      float value = 0;
      if ((bits[k / 8] >> (k % 8)) & 1) {
        uint16_t half = 0;
        if (weight.value_type == ValueType::kFloat32) {
          std::memcpy(&value, values + 4 * next, 4);
        } else {
          std::memcpy(&half, values + 2 * next, 2);
          value = weight.value_type == ValueType::kFloat16 ? HalfToFloat(half) : BFloat16ToFloat(half);
        }
        ++next;
      }
      out[m * weight.in_features + k] = value;
    }
  }
}

}  // namespace flashllm
