// Dense weights strip by strip, scaled and pruned: what the analysis and the packer have in common.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/sparse-matmul/float_bits.h"
#include "ops/sparse-matmul/packer.h"
#include "ops/sparse-matmul/strip_runner.h"

namespace flashllm {

/// Whether a value is neither infinite nor NaN.
inline bool IsFinite(float value) { return MagnitudeKey(BitsOfFloat(value)) < 0x7F800000; }

/// What one thread keeps between strips.
struct Worker {
  ReadBuffers read;
  std::vector<float> dense;   // [rows, K], scaled
  std::vector<float> stored;  // the nonzeros, in order
  std::vector<uint8_t> bitmap;
  std::vector<int32_t> row_offsets;
  std::vector<uint8_t> values;
  std::vector<uint32_t> scratch;
};

/// Reads strips and prunes them. Its constructor makes the passes that pruning a whole layer needs.
class StripSource {
 public:
  StripSource(const std::vector<WeightSegment>& segments, const WeightOptions& options, const PackControl& control);

  const WeightReader& reader() const { return reader_; }
  StripRunner& runner() { return runner_; }

  /// Fills worker->dense with rows [begin, end) before pruning.
  void Read(int64_t begin, int64_t end, Worker* worker) const;

  /// Zeroes what pruning drops. Strips wait here for those before them where ties have to be counted.
  void Prune(int64_t strip, int64_t rows, Worker* worker);

  /// Wakes whoever waits in Prune(), to fail.
  void Abort() { ties_.Abort(); }

 private:
  int Passes() const;
  void SelectLayerThreshold();

  const WeightOptions options_;
  const WeightReader reader_;
  StripRunner runner_;
  Threshold threshold_;
  OrderedTotal ties_;
};

}  // namespace flashllm
