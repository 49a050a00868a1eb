// Dense weights to the packed format of docs/format.md: strip by strip, on several threads, with bounded memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ops/sparse-matmul/format.h"
#include "ops/sparse-matmul/pruning.h"
#include "ops/sparse-matmul/weight_reader.h"

namespace flashllm {

/// What both AnalyzeWeight and PackWeight do with a weight before they look for zeros.
struct WeightOptions {
  PruneSpec prune;
  float scale = 1.0f;  // every element is multiplied by it
};

/// How a long run reports and ends. Both are looked at from worker threads.
struct PackControl {
  std::function<void(int64_t bytes_done)> progress;  // of the dense source, rising to all of it; one call at a time
  const std::atomic<bool>* cancelled = nullptr;
  int threads = 0;  // 0: one a core, 8 at most
};

struct WeightAnalysis {
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t zeros = 0;         // ±0 in the source
  int64_t nnz = 0;           // stored values after pruning
  int64_t non_finite = 0;    // infinities and NaNs in the source
  bool fits_float16 = true;  // every stored value is exactly representable
  bool fits_bfloat16 = true;
};

/// Reads a weight and says what packing it would give. Throws PackError.
WeightAnalysis AnalyzeWeight(const std::vector<WeightSegment>& segments, const WeightOptions& options,
                             const PackControl& control = {});

/// Byte positions of the parts in one file, which is created where it is missing and never cut.
struct PackDestination {
  std::string path;
  int64_t bitmap_offset = 0;
  int64_t row_offsets_offset = 0;
  int64_t values_offset = 0;
};

struct PackResult {
  int64_t nnz = 0;
  uint32_t checksum = 0;
};

/// Writes a packed weight into a file. Throws PackError, also where a finite value would overflow `value_type`.
PackResult PackWeight(const std::vector<WeightSegment>& segments, const WeightOptions& options, ValueType value_type,
                      const PackDestination& destination, const PackControl& control = {});

/// A packed weight with its own memory.
struct OwnedPackedWeight {
  std::vector<uint8_t> bitmap;
  std::vector<int32_t> row_offsets;
  std::vector<uint8_t> values;
  PackedWeight view;  // of the three above; moving this struct keeps it right, copying does not
  uint32_t checksum = 0;
};

/// Packs into memory. Throws PackError.
OwnedPackedWeight PackInMemory(const std::vector<WeightSegment>& segments, const WeightOptions& options,
                               ValueType value_type, const PackControl& control = {});

/// Expands a validated weight into out [out_features, in_features].
void UnpackWeight(const PackedWeight& weight, float* out);

}  // namespace flashllm
