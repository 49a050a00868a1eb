// What packing a weight would give, without packing it.
#include <algorithm>
#include <mutex>

#include "ops/sparse-matmul/packer.h"
#include "ops/sparse-matmul/strip_source.h"

namespace flashllm {
namespace {

// All ones if HalfToFloat(FloatToHalf(value)) gives the same bits, else 0: a NaN fits if it stays the same NaN, and so
// does -0. Without a branch: among random zeros a branch that tells small values apart would be mispredicted every few
// elements.
uint32_t FitsFloat16(float value) {
  // Masks of 32 bits, like the elements: loops over them are vectorised, over mixed widths they are not.
  const uint32_t magnitude = BitsOfFloat(value) & 0x7FFFFFFF;
  const uint32_t small = magnitude < 0x38800000 ? ~0u : 0u;   // below 2^-14
  const uint32_t finite = magnitude < 0x47800000 ? ~0u : 0u;  // below 2^16
  const uint32_t infinite = magnitude == 0x7F800000 ? ~0u : 0u;
  const uint32_t quiet = (magnitude & 0x7FC00000) == 0x7FC00000 ? ~0u : 0u;
  const uint32_t ten_bits = (magnitude & 0x1FFF) == 0 ? ~0u : 0u;
  // From 0.5 to 1 floats lie 2^-24 apart, as subnormal halves do: what such a sum rounds away, a half cannot hold.
  const uint32_t tiny = magnitude & small;
  const uint32_t whole = BitsOfFloat((FloatFromBits(tiny) + 0.5f) - 0.5f) == tiny ? ~0u : 0u;
  return (small & whole) | (~small & ten_bits & (finite | infinite | quiet));
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
    uint32_t fits = ~0u;
    for (size_t i = begin; i < end; ++i) fits &= FitsFloat16(dense[i]);
    part->fits_float16 = fits != 0;
  }
}

void Accumulate(const WeightAnalysis& part, WeightAnalysis* total) {
  total->zeros += part.zeros;
  total->nnz += part.nnz;
  total->non_finite += part.non_finite;
  total->fits_float16 &= part.fits_float16;
  total->fits_bfloat16 &= part.fits_bfloat16;
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

}  // namespace flashllm
