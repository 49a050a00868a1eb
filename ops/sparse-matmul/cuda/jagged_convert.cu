// Canonical parts -> jagged layout (jagged_layout.h), on the device. Runs once at load.
#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/jagged.h"
#include "ops/sparse-matmul/cuda/jagged_layout.h"

namespace flashllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOrderThreads = 512;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct JaggedSource {
  const uint32_t* bitmap;      // rows of `row_words` 32-bit words
  const int32_t* row_offsets;  // [rows + 1]
  const void* values;
  JaggedPartition partition;
  int row_words, window_words, blocks;
  // What Measure leaves in the staging memory.
  int64_t* layout_bytes;
  uint32_t* prefix;      // [rows, windows] stored values of the row before the window; kFillsGap
  uint32_t* segments;    // [row blocks: windows, rows] segment words, in the order of slabs and lanes
  uint32_t* slab_at;     // [numbers of slabs] from the row block's first slab, in kSlabAlignment
  uint32_t* run_at;      // [row blocks, kJaggedWarps] the same of the runs
  uint32_t* block_size;  // [row blocks] in kSlabAlignment
  uint32_t* block_at;    // [row blocks] from the layout's start
};

/// Of a segment with an odd number of entries that ends with its window: the filler that makes them even cannot come
/// behind, where X is the next window's, of which the row may have a weight. It takes a place without one, in the first
/// gap: where there are too few entries for the window, there is a gap.
constexpr uint32_t kFillsGap = 1u << 31;
static_assert(kMinWindowK % 2 == 0 && kWindowStep % 2 == 0, "a full window has an even number");

/// Row block `block`'s part of JaggedSource::segments.
__device__ __forceinline__ uint32_t* SegmentsOf(const JaggedSource& s, int block) {
  return s.segments + static_cast<int64_t>(s.partition.row_start[block]) * s.partition.windows;
}

/// The set bits of a row in a window, one after the other.
class WindowBits {
 public:
  __device__ __forceinline__ WindowBits(const JaggedSource& s, int row, int window)
      : words_(s.bitmap + static_cast<int64_t>(row) * s.row_words + window * s.window_words),
        count_(min(s.window_words, s.row_words - window * s.window_words)),
        bits_(words_[0]) {}

  /// The next place in the window, or -1.
  __device__ __forceinline__ int Next() {
    while (bits_ == 0) {
      if (++word_ >= count_) return -1;
      bits_ = words_[word_];
    }
    const int bit = __ffs(bits_) - 1;
    bits_ &= bits_ - 1;
    return 32 * word_ + bit;
  }

 private:
  const uint32_t* words_;
  int count_, word_ = 0;
  uint32_t bits_;
};

/// One warp a row, a lane a window; grid.y: row blocks. How many values precede each window, and the segments' words,
/// in the order of windows and rows.
__global__ void CountSegments(const __grid_constant__ JaggedSource s) {
  const int block = blockIdx.y;
  const int row = s.partition.row_start[block] + (blockIdx.x * kThreads + threadIdx.x) / 32, lane = threadIdx.x & 31;
  if (row >= s.partition.row_start[block + 1]) return;
  const int windows = s.partition.windows, rows = s.partition.Rows(block);
  uint32_t before = 0;
  for (int first = 0; first < windows; first += 32) {
    const int window = first + lane;
    uint32_t count = 0, fills_gap = 0;
    if (window < windows) {
      WindowBits bits(s, row, window);
      int entries = 0, place = -1;
      for (int next = bits.Next(); next >= 0; next = bits.Next()) {
        entries += (next - place - 1) / kMostDistance + 1;
        place = next;
        ++count;
      }
      if (entries % 2 == 1 && place == s.partition.window_k - 1) fills_gap = kFillsGap, ++entries;
      const int in_block = row - s.partition.row_start[block];
      SegmentsOf(s, block)[static_cast<int64_t>(window) * rows + in_block] =
          SegmentWord::Make(entries, in_block, window).bits;
    }
    uint32_t sum = count;
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    if (window < windows) s.prefix[static_cast<int64_t>(row) * windows + window] = (before + sum - count) | fills_gap;
    before += __shfl_sync(kAllLanes, sum, 31);
  }
}

/// Whether a segment comes before another one: the longer, and of equal ones the one of the smaller number.
__device__ __forceinline__ bool Precedes(int entries, int number, int other_entries, int other_number) {
  return entries > other_entries || (entries == other_entries && number < other_number);
}

/// The lane's segment of a slab, from the longest to the shortest.
__device__ __forceinline__ uint32_t SortSlab(uint32_t word) {
  const int lane = threadIdx.x & 31, entries = SegmentWord{word}.exists() ? SegmentWord{word}.entries() : -1;
  int rank = 0;
  for (int other = 0; other < 32; ++other)
    rank += Precedes(__shfl_sync(kAllLanes, entries, other), other, entries, lane);
  uint32_t sorted = word;
  for (int other = 0; other < 32; ++other) {
    const uint32_t their = __shfl_sync(kAllLanes, word, other);
    if (__shfl_sync(kAllLanes, rank, other) == lane) sorted = their;
  }
  return sorted;
}

__device__ __forceinline__ uint32_t WarpSum(uint32_t value) { return __reduce_add_sync(kAllLanes, value); }

/// The slab after the last that a run from `slab` on takes, of at most `most`. `places`: of the row block's slabs;
/// `end`: where the last one ends.
__device__ __forceinline__ int EndOfRun(const uint32_t* places, int slabs, uint32_t end, int slab, uint32_t most) {
  if (slab >= slabs) return slabs;
  const uint32_t first = places[slab];
  do {
    ++slab;
  } while (slab < slabs && (slab + 1 < slabs ? places[slab + 1] : end) - first <= most);
  return slab;
}

/// The smallest size with which as many runs as there are warps hold all slabs.
__device__ uint32_t RunSize(const uint32_t* places, int slabs, uint32_t end) {
  uint32_t low = end / kJaggedWarps, high = end;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    int slab = 0;
    for (int run = 0; run < kJaggedWarps; ++run) slab = EndOfRun(places, slabs, end, slab, middle);
    if (slab >= slabs)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

/// A thread block a row block: its segments in the order of slabs and lanes, where its slabs lie, and its runs.
__global__ void __launch_bounds__(kOrderThreads) OrderSegments(const __grid_constant__ JaggedSource s) {
  __shared__ uint32_t words[kMaxBlockRows + 1];
  const int block = blockIdx.x, rows = s.partition.Rows(block), windows = s.partition.windows;
  uint32_t* const segments = SegmentsOf(s, block);
  for (int window = 0; window < windows; ++window) {
    uint32_t* const of_window = segments + static_cast<int64_t>(window) * rows;
    const int row = threadIdx.x;
    if (row < rows) words[row] = of_window[row];
    __syncthreads();
    if (row < rows) {
      const int entries = SegmentWord{words[row]}.entries();
      int rank = 0;
      for (int other = 0; other < rows; ++other)
        rank += Precedes(SegmentWord{words[other]}.entries(), other, entries, row);
      of_window[rank] = words[row];
    }
    __syncthreads();
  }
  const int64_t count = static_cast<int64_t>(rows) * windows, first_slab = s.partition.FirstSlab(block);
  const int slabs = s.partition.Slabs(block), warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  for (int slab = warp; slab < slabs; slab += kOrderThreads / 32) {
    const int64_t at = 32ll * slab + lane;
    const uint32_t word = SortSlab(at < count ? segments[at] : SegmentWord::kNone);
    if (at < count) segments[at] = word;  // lanes without a segment are the last ones
    const uint32_t bytes = kSlabAlignment + WarpSum(SegmentBytes(SegmentWord{word}.entries()));
    if (lane == 0) s.slab_at[first_slab + slab] = (bytes + kSlabAlignment - 1) / kSlabAlignment;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint32_t at = 0;
  for (int slab = 0; slab < slabs; ++slab) {
    const uint32_t size = s.slab_at[first_slab + slab];
    s.slab_at[first_slab + slab] = at;
    at += size;
  }
  s.block_size[block] = at;
  const uint32_t* const places = s.slab_at + first_slab;
  const uint32_t most = RunSize(places, slabs, at);
  for (int run = 0, slab = 0; run < kJaggedWarps; ++run) {
    s.run_at[block * kJaggedWarps + run] = slab < slabs ? places[slab] : at;
    slab = EndOfRun(places, slabs, at, slab, most);
  }
}

/// One thread: where the row blocks lie.
__global__ void PlaceBlocks(const __grid_constant__ JaggedSource s, int64_t first) {
  uint32_t at = static_cast<uint32_t>(first / kSlabAlignment);
  for (int block = 0; block < s.blocks; ++block) {
    s.block_at[block] = at;
    at += s.block_size[block];
  }
  *s.layout_bytes = static_cast<int64_t>(at) * kSlabAlignment;
}

__device__ __forceinline__ uint16_t HalfBits(uint16_t value) { return value; }
__device__ __forceinline__ uint16_t HalfBits(float value) { return __half_as_ushort(__float2half_rn(value)); }

/// A segment's entries, one after the other.
template <typename From>
class Entries {
 public:
  __device__ __forceinline__ Entries(const JaggedSource& s, int row, int window) : bits_(s, row, window) {
    const uint32_t prefix = s.prefix[static_cast<int64_t>(row) * s.partition.windows + window];
    value_ = static_cast<const From*>(s.values) + s.row_offsets[row] + (prefix & ~kFillsGap);
    fills_gap_ = (prefix & kFillsGap) != 0;
    next_ = bits_.Next();
  }

  /// The next entry's value; `distance`: what is stored of how far it lies behind the one before. A filler at the end.
  __device__ __forceinline__ uint16_t Next(uint32_t* distance) {
    *distance = 0;
    if (next_ < 0) return 0;
    const int gap = next_ - place_;
    if (gap > 1 && fills_gap_) {
      fills_gap_ = false;
      ++place_;
      // The rest of the gap has as many fillers as it had before, or one less: then there is another place for one.
      if ((gap - 2) / kMostDistance < (gap - 1) / kMostDistance) fills_gap_ = true;
      return 0;
    }
    if (gap > kMostDistance) {
      *distance = kMostDistance - 1;
      place_ += kMostDistance;
      return 0;
    }
    *distance = gap - 1;
    place_ = next_;
    next_ = bits_.Next();
    return HalfBits(*value_++);
  }

 private:
  WindowBits bits_;
  const From* value_;
  bool fills_gap_;
  int next_, place_ = -1;
};

/// One warp a slab; grid.y: row blocks. The layout is zero before.
template <typename From>
__global__ void __launch_bounds__(kThreads) FillSlabs(const __grid_constant__ JaggedSource s, uint8_t* layout) {
  const int block = blockIdx.y, lane = threadIdx.x & 31;
  uint32_t* const runs = reinterpret_cast<uint32_t*>(layout);
  if (blockIdx.x == 0 && threadIdx.x < kJaggedWarps) {
    runs[block * kJaggedWarps + threadIdx.x] = s.block_at[block] + s.run_at[block * kJaggedWarps + threadIdx.x];
    if (block == s.blocks - 1) runs[s.blocks * kJaggedWarps] = s.block_at[block] + s.block_size[block];
  }
  const int slab = (blockIdx.x * kThreads + threadIdx.x) / 32;
  if (slab >= s.partition.Slabs(block)) return;
  const int64_t index = 32ll * slab + lane, count = static_cast<int64_t>(s.partition.Rows(block)) * s.partition.windows;
  const SegmentWord word = {index < count ? SegmentsOf(s, block)[index] : SegmentWord::kNone};
  uint32_t* to = reinterpret_cast<uint32_t*>(
      layout +
      static_cast<int64_t>(s.block_at[block] + s.slab_at[s.partition.FirstSlab(block) + slab]) * kSlabAlignment);
  to[lane] = word.bits;
  to += 32;
  int left = word.entries();
  // A lane without a segment reads row 0's, and stores nothing of it.
  Entries<From> entries(s, s.partition.row_start[block] + (word.exists() ? word.row() : 0),
                        word.exists() ? word.window() : 0);
  for (int longest = __shfl_sync(kAllLanes, left, 0); longest > 0; longest -= kStepEntries, left -= kStepEntries) {
    uint32_t distances = 0, values[4] = {};
#pragma unroll
    for (int i = 0; i < kStepEntries; ++i) {
      uint32_t distance = 0;
      if (left > i) values[i / 2] |= static_cast<uint32_t>(entries.Next(&distance)) << (16 * (i & 1));
      distances |= distance << DistanceShift(i);
    }
    if (left > 0) to[lane] = distances;
    to += __popc(__ballot_sync(kAllLanes, left > 0));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (left > 2 * i) to[lane] = values[i];
      to += __popc(__ballot_sync(kAllLanes, left > 2 * i));
    }
  }
}

JaggedSource MakeSource(const WeightPlan& plan, const DeviceParts& parts, const void* staging) {
  JaggedSource source = {};
  source.bitmap = reinterpret_cast<const uint32_t*>(parts.bitmap);
  source.row_offsets = parts.row_offsets;
  source.values = parts.values;
  source.partition = MakeJaggedPartition(plan);
  source.row_words = static_cast<int>(BitmapRowBytes(plan.in_features) / 4);
  source.window_words = plan.window_k / 32;
  source.blocks = plan.blocks;
  const int64_t segments = plan.out_features * source.partition.windows;
  source.layout_bytes = static_cast<int64_t*>(const_cast<void*>(staging));
  source.prefix = reinterpret_cast<uint32_t*>(source.layout_bytes + 1);
  source.segments = source.prefix + segments;
  source.slab_at = source.segments + segments;
  source.run_at = source.slab_at + source.partition.SlabNumbers(plan.blocks);
  source.block_size = source.run_at + plan.blocks * kJaggedWarps;
  source.block_at = source.block_size + plan.blocks;
  return source;
}

}  // namespace

cudaError_t MeasureJagged(const WeightPlan& plan, const DeviceParts& parts, void* staging, cudaStream_t stream) {
  const JaggedSource source = MakeSource(plan, parts, staging);
  const dim3 grid((source.partition.most_rows * 32 + kThreads - 1) / kThreads, plan.blocks);
  CountSegments<<<grid, kThreads, 0, stream>>>(source);
  OrderSegments<<<plan.blocks, kOrderThreads, 0, stream>>>(source);
  PlaceBlocks<<<1, 1, 0, stream>>>(source, RunTableBytes(plan.blocks));
  return cudaGetLastError();
}

cudaError_t ConvertJagged(const WeightPlan& plan, const DeviceParts& parts, const void* staging, void* layout,
                          cudaStream_t stream) {
  const JaggedSource source = MakeSource(plan, parts, staging);
  int most = 0;
  for (int block = 0; block < plan.blocks; ++block) most = std::max(most, source.partition.Slabs(block));
  const dim3 grid((most * 32 + kThreads - 1) / kThreads, plan.blocks);
  const auto fill = parts.value_type == ValueType::kFloat32 ? FillSlabs<float> : FillSlabs<uint16_t>;
  fill<<<grid, kThreads, 0, stream>>>(source, static_cast<uint8_t*>(layout));
  return cudaGetLastError();
}

}  // namespace flashllm::cuda
