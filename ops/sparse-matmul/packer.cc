#include "ops/sparse-matmul/packer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <mutex>

#include "ops/sparse-matmul/float_bits.h"
#include "ops/sparse-matmul/strip_runner.h"

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

// What one thread keeps between strips.
struct Worker {
  ReadBuffers read;
  std::vector<float> dense;    // [rows, K], scaled
  std::vector<float> stored;   // the nonzeros, in order
  std::vector<uint8_t> bitmap;
  std::vector<int32_t> row_offsets;
  std::vector<uint8_t> values;
  std::vector<uint32_t> scratch;
};

// Reads strips and prunes them.
class StripSource {
 public:
  StripSource(const std::vector<WeightSegment>& segments, const WeightOptions& options, const PackControl& control)
      : options_(options), reader_(segments, options.scale), runner_(reader_, control, Passes()) {
    const double sparsity = options.prune.sparsity;
    if (options.prune.enabled && !(sparsity >= 0 && sparsity <= 1)) {
      throw PackError("sparsity is " + std::to_string(sparsity) + ", expected 0 to 1");
    }
    if (options.prune.enabled && options.prune.scope == PruneScope::kLayer) SelectLayerThreshold();
  }

  const WeightReader& reader() const { return reader_; }
  StripRunner& runner() { return runner_; }

  // Fills worker->dense with rows [begin, end) before pruning.
  void Read(int64_t begin, int64_t end, Worker* worker) const {
    worker->dense.resize(static_cast<size_t>((end - begin) * reader_.in_features()));
    reader_.Read(begin, end, worker->dense.data(), &worker->read);
  }

  // Zeroes what pruning drops. Strips pass here in order where ties have to be counted.
  void Prune(int64_t strip, int64_t rows, Worker* worker) {
    if (!options_.prune.enabled) return;
    const int64_t columns = reader_.in_features();
    if (options_.prune.scope == PruneScope::kRow) {
      const int64_t drop = PruneCount(options_.prune.sparsity, columns);
      for (int64_t r = 0; r < rows; ++r) {
        float* row = worker->dense.data() + r * columns;
        const Threshold threshold = SelectRow(row, columns, drop, &worker->scratch);
        DropTies(row, columns, threshold);
        DropBelow(row, columns, threshold.key);
      }
      return;
    }
    float* values = worker->dense.data();
    const int64_t count = rows * columns;
    DropBelow(values, count, threshold_.key);
    int64_t ties = 0;
    for (int64_t i = 0; i < count; ++i) ties += MagnitudeKey(BitsOfFloat(values[i])) == threshold_.key;
    const int64_t before = ties_.Take(strip, ties);
    DropTies(values, count, {threshold_.key, threshold_.ties - before});
  }

  void Abort() { ties_.Abort(); }

 private:
  int Passes() const {
    const bool layer = options_.prune.enabled && options_.prune.scope == PruneScope::kLayer;
    return !layer ? 1 : reader_.values_are_short() ? 2 : 3;
  }

  void SelectLayerThreshold() {
    const int64_t drop = PruneCount(options_.prune.sparsity, reader_.out_features() * reader_.in_features());
    LayerSelector selector;
    while (!selector.done()) {
      if (drop == 0) {
        selector.NextPass(drop, true);
        break;
      }
      std::vector<LayerSelector> selectors(static_cast<size_t>(runner_.threads()), selector);
      std::vector<Worker> workers(selectors.size());
      runner_.Pass([&](int64_t, int64_t begin, int64_t end, int worker) {
        Read(begin, end, &workers[worker]);
        selectors[worker].Count(workers[worker].dense.data(), (end - begin) * reader_.in_features());
      });
      for (const LayerSelector& counted : selectors) selector.Merge(counted);
      selector.NextPass(drop, reader_.values_are_short());
    }
    threshold_ = selector.threshold();
  }

  static void DropBelow(float* values, int64_t count, uint32_t key) {
    for (int64_t i = 0; i < count; ++i) {
      values[i] = MagnitudeKey(BitsOfFloat(values[i])) < key ? 0.0f : values[i];
    }
  }

  static void DropTies(float* values, int64_t count, Threshold threshold) {
    for (int64_t i = 0; i < count && threshold.ties > 0; ++i) {
      if (MagnitudeKey(BitsOfFloat(values[i])) != threshold.key) continue;
      values[i] = 0;
      --threshold.ties;
    }
  }

  const WeightOptions options_;
  const WeightReader reader_;
  StripRunner runner_;
  Threshold threshold_;
  OrderedTotal ties_;
};

bool IsFinite(float value) { return MagnitudeKey(BitsOfFloat(value)) < 0x7F800000; }

// Whether HalfToFloat(FloatToHalf(value)) gives the same bits: a NaN fits if it stays the same NaN, and so does -0. Without a branch:
// among random zeros a branch that tells small values apart would be mispredicted every few elements.
bool FitsFloat16(float value) {
  const uint32_t magnitude = BitsOfFloat(value) & 0x7FFFFFFF;
  const bool ten_bits = (magnitude & 0x1FFF) == 0;
  const bool normal = magnitude - 0x38800000 < 0x47800000 - 0x38800000;  // [2^-14, 2^16)
  const bool special = (magnitude == 0x7F800000) | ((magnitude > 0x7F800000) & ((magnitude & 0x400000) != 0));
  const bool small = magnitude < 0x38800000;
  const float steps = FloatFromBits(small ? magnitude : 0) * 16777216.0f;  // of 2^-24, a subnormal half's last bit
  const bool whole = static_cast<float>(static_cast<int32_t>(steps)) == steps;
  return (small & whole) | (ten_bits & (normal | special));
}

// Elements looked at in one loop. Its counters have 32 bits, like the elements, so that compilers vectorise it.
constexpr size_t kBlock = 4096;

// Zeros and values that are not finite, before pruning.
void CountSource(const std::vector<float>& dense, WeightAnalysis* part) {
  for (size_t begin = 0; begin < dense.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, dense.size());
    uint32_t zeros = 0, non_finite = 0;
    for (size_t i = begin; i < end; ++i) {
      const uint32_t magnitude = BitsOfFloat(dense[i]) & 0x7FFFFFFF;
      zeros += magnitude == 0;
      non_finite += magnitude >= 0x7F800000;
    }
    part->zeros += zeros;
    part->non_finite += non_finite;
  }
}

// Values that are stored, and which types hold all of them.
void CountStored(const std::vector<float>& dense, WeightAnalysis* part) {
  for (size_t begin = 0; begin < dense.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, dense.size());
    uint32_t stored = 0, low_bits = 0;
    for (size_t i = begin; i < end; ++i) {
      const uint32_t bits = BitsOfFloat(dense[i]);
      stored += (bits & 0x7FFFFFFF) != 0;
      low_bits |= bits & 0xFFFF;
    }
    part->nnz += stored;
    part->fits_bfloat16 &= low_bits == 0;
    if (!part->fits_float16) continue;
    uint32_t misfits = 0;
    for (size_t i = begin; i < end; ++i) misfits += !FitsFloat16(dense[i]);
    part->fits_float16 = misfits == 0;
  }
}

void Accumulate(const WeightAnalysis& part, WeightAnalysis* total) {
  total->zeros += part.zeros;
  total->nnz += part.nnz;
  total->non_finite += part.non_finite;
  total->fits_float16 &= part.fits_float16;
  total->fits_bfloat16 &= part.fits_bfloat16;
}

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
      throw PackError("the weight holds " + std::to_string(value) + ", which overflows " + NameOf(type) +
                      ": choose " + (half ? "bfloat16 or " : "") + "float32 values");
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

WeightAnalysis AnalyzeWeight(const std::vector<WeightSegment>& segments, const WeightOptions& options,
                             const PackControl& control) {
  StripSource source(segments, options, control);
  WeightAnalysis total;
  total.out_features = source.reader().out_features();
  total.in_features = source.reader().in_features();
  std::vector<Worker> workers(static_cast<size_t>(source.runner().threads()));
  std::mutex mutex;
  const auto analyze_strip = [&](int64_t strip, int64_t begin, int64_t end, int worker) {
    Worker& w = workers[worker];
    WeightAnalysis part;
    source.Read(begin, end, &w);
    CountSource(w.dense, &part);
    source.Prune(strip, end - begin, &w);
    CountStored(w.dense, &part);
    std::lock_guard<std::mutex> lock(mutex);
    Accumulate(part, &total);
  };
  source.runner().Pass(analyze_strip, [&] { source.Abort(); });
  return total;
}

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
