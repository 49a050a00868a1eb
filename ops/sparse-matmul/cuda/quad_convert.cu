// Canonical parts -> columns of quads, on the device: which k go together in every tile's windows, then the streams.
#include "ops/sparse-matmul/cuda/quad_convert.h"

#include "ops/sparse-matmul/cuda/quad_arrange.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kWarps = 4;

struct QuadSource {
  Source source;
  QuadWindow* windows;  // [runs, most_windows]
  int runs, most_windows;

  QuadSource(const WeightPlan& plan, const Source& s, const Partition& cut) : source(s) {
    windows = reinterpret_cast<QuadWindow*>(s.prefix + static_cast<int64_t>(s.rows) * s.units);
    runs = RunCount(plan), most_windows = MostQuadWindows(cut);
  }
};

/// A lane's slot: register r of the fragment of unit u.
struct QuadSlot {
  int row, quad;

  __device__ QuadSlot(int u, int r) {
    const int lane = threadIdx.x & 31;
    row = lane / 4 + 8 * (r & 1), quad = u * kUnitQuads + lane % 4 + 4 * (r >> 1);
  }
};

/// One stage of a window: quads from `first` on.
class StageQuads {
 public:
  __device__ StageQuads(const Source& s, const QuadWindow* window, int row0, int unit0, int first)
      : s_(s), window_(window), row0_(row0), unit0_(unit0), first_(first) {
    const int left = Padded(static_cast<int>(window->pairs)) - first;
    units = min(left / kUnitQuads, kQuadWindowUnits);
    more = left > kQuadWindowUnits * kUnitQuads;
  }

  int units;
  bool more;  // of the window's quads than the stage has

  /// Quads of whole units, one at least, for so many pairs.
  static __device__ int Padded(int pairs) {
    const int quads = (pairs + 1) / 2;
    return max(1, (quads + kUnitQuads - 1) / kUnitQuads) * kUnitQuads;
  }

  /// Whether quad `q` of the stage has a nonzero in the tile's row `row`.
  __device__ bool HasWord(int row, int q) const { return HasNonzero(row, q, 0) || HasNonzero(row, q, 1); }

  /// Which k of a pair a row's product takes. Of a pair that only fills up the unit that where the row has a zero: what
  /// is multiplied by nothing may be infinite.
  __device__ int Choice(int row, int q, int pair) const {
    return IsReal(q, pair) ? Bit(row, K(q, 2 * pair + 1)) : Bit(row, K(q, 2 * pair));
  }

  /// The k in the window of one of a quad's four.
  __device__ int K(int q, int place) const { return window_->quads[first_ + q] >> 8 * place & 255; }

  /// The two values of a slot, as bits.
  template <typename From>
  __device__ uint32_t Words(const QuadSlot& slot) const {
    uint32_t words = 0;
    for (int pair = 0; pair < 2; ++pair) {
      if (!IsReal(slot.quad, pair)) continue;
      const int place = 2 * pair + Choice(slot.row, slot.quad, pair);
      words |= static_cast<uint32_t>(Element<From>(slot.row, K(slot.quad, place))) << 16 * pair;
    }
    return words;
  }

 private:
  /// The element of a row at a k of the window, as bits; 0 where it is not stored.
  template <typename From>
  __device__ uint32_t Element(int row, int k) const {
    if (!Bit(row, k)) return 0;
    const int unit = unit0_ + k / kUnitK, at = row0_ + row;
    const uint32_t before = Word(s_, at, unit) & ((1u << k % kUnitK) - 1);
    const int64_t index =
        s_.row_offsets[at] + s_.prefix[static_cast<int64_t>(at) * s_.units + unit] + int64_t{__popc(before)};
    return ToBits(static_cast<const From*>(s_.values)[index]);
  }

  __device__ bool IsReal(int q, int pair) const { return 2 * (first_ + q) + pair < static_cast<int>(window_->pairs); }

  __device__ bool HasNonzero(int row, int q, int pair) const {
    return IsReal(q, pair) && (Bit(row, K(q, 2 * pair)) || Bit(row, K(q, 2 * pair + 1)));
  }

  __device__ bool Bit(int row, int k) const {
    return (Word(s_, row0_ + row, unit0_ + k / kUnitK) >> k % kUnitK & 1) != 0;
  }

  const Source& s_;
  const QuadWindow* const window_;
  const int row0_, unit0_, first_;
};

/// One warp a run and window.
__global__ void __launch_bounds__(32 * kWarps) BringTogether(const __grid_constant__ Partition p, QuadSource s) {
  __shared__ Workspace workspaces[kWarps];
  const int warp = threadIdx.x / 32, number = blockIdx.x * kWarps + warp, index = number / s.most_windows;
  if (index >= s.runs) return;
  const Run run = RunOf(p, index);
  const RunPanel panel = PanelOf(run, 0);
  const int unit0 = run.first_unit + number % s.most_windows * p.window_units;
  if (panel.own == 0 || unit0 >= run.end_unit) return;
  const int units = min(p.window_units, run.end_unit - unit0);
  Workspace& work = workspaces[warp];
  uint32_t columns[kQuadWindowUnits];
  ReadColumns(s.source, panel.first_tile * kTileRows, unit0, units, &work, columns);
  QuadArranger arranger(&work, columns, units);
  const int pairs = arranger.Run();
  QuadWindow* const window = s.windows + number;
  const int lane = threadIdx.x & 31;
  const uint32_t filler = arranger.filler() | arranger.filler() << 16;
  for (int q = lane; q < StageQuads::Padded(pairs); q += 32)
    window->quads[q] = 2 * q + 1 < pairs ? work.quads[q] : 2 * q < pairs ? work.quads[q] | filler << 16 : filler;
  if (lane == 0) window->pairs = pairs;
}

/// Calls visit(stage's quads, mask, what the walk says, walk) for each stage of run `index`.
template <typename Visit>
__device__ RunLengths WalkQuads(const Partition& p, int index, const QuadSource& s, const Visit& visit) {
  const Run run = RunOf(p, index);
  const RunPanel panel = PanelOf(run, 0);
  Walk<Columns::kQuads> walk(s.source.ring_rows, WindowRows(Columns::kQuads, run.team));
  uint32_t masks16 = 0;
  const int windows = panel.own == 0 ? 0 : QuadWindows(run.end_unit - run.first_unit, p.window_units);
  for (int w = 0; w < windows; ++w) {
    const QuadWindow* const window = s.windows + static_cast<int64_t>(index) * s.most_windows + w;
    bool more = true;
    for (int first = 0; more; first += kQuadWindowUnits * kUnitQuads) {
      const StageQuads quads(s.source, window, panel.first_tile * kTileRows, run.first_unit + w * p.window_units,
                             first);
      uint32_t mask = 0;
      for (int u = 0; u < quads.units; ++u) {
        for (int r = 0; r < 4; ++r) {
          const QuadSlot slot(u, r);
          if (quads.HasWord(slot.row, slot.quad)) mask |= 1u << (8 * r + u);
        }
      }
      const int count[2] = {__popc(mask), __popc(mask)};
      const auto stage = walk.Enter(count, kQuadWords);
      visit(quads, mask, stage, walk);
      walk.Leave(count);
      masks16 += MaskBlockBytes(kQuadWords) / 16;
      more = quads.more;
    }
  }
  return {static_cast<uint32_t>(walk.end), masks16};
}

__global__ void __launch_bounds__(32 * kWarps) MeasureRuns(const __grid_constant__ Partition p, QuadSource s) {
  const int index = blockIdx.x * kWarps + threadIdx.x / 32;
  if (index >= s.runs) return;
  const RunLengths lengths = WalkQuads(p, index, s, [](auto&&...) {});
  if ((threadIdx.x & 31) == 0) s.source.lengths[index] = lengths;
}

/// The lane's share of which k of each pair its fragments' sparse products take: layout.h.
__device__ __forceinline__ void SetChoices(const StageQuads& quads, uint32_t (&words)[kQuadWords]) {
  const int lane = threadIdx.x & 31, t = lane % 4;
  for (int j = 0; j < kQuadWindowUnits / 2; ++j) {
    const int unit = 2 * j + t / 2;
    if (unit >= quads.units) continue;
    for (int i = 0; i < 8; ++i) {
      const int row = lane / 4 + i / 4 * 8, quad = unit * kUnitQuads + 4 * (t % 2) + i % 4;
      for (int pair = 0; pair < 2; ++pair)
        words[kQuadChoices + j / 2] |= static_cast<uint32_t>(quads.Choice(row, quad, pair))
                                       << (4 * i + 2 * pair + j % 2);
    }
  }
}

template <typename From>
__global__ void __launch_bounds__(32 * kWarps)
    FillRuns(const __grid_constant__ Partition p, QuadSource s, uint8_t* layout) {
  const int index = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x & 31;
  if (index >= s.runs) return;
  RunRecord* const record = reinterpret_cast<RunRecord*>(layout) + index;
  const RunHead head = s.source.heads[index];
  if (lane == 0) record->masks = head.masks, record->values = head.values;
  uint8_t* block = layout + static_cast<int64_t>(head.masks) * 16;
  uint8_t* const values = layout + static_cast<int64_t>(head.values) * kValueRowBytes;
  CopyWriter copies(record);
  WalkQuads(p, index, s,
            [&](const StageQuads& quads, uint32_t mask, const Walk<Columns::kQuads>::Stage& stage,
                const Walk<Columns::kQuads>& walk) {
              auto* const header = reinterpret_cast<StageHeader*>(block);
              if (lane == 0) {
                copies.Add(stage.copy, stage.lag, header);
                header->shift = stage.shift + QuadStage::Make(quads.units, quads.more).bits;
                header->jump = stage.jump;
              }
              header->column[lane] = stage.column;
              uint32_t words[kQuadWords] = {};
              words[kQuadMask] = mask;
              SetChoices(quads, words);
              uint8_t* to = values + static_cast<int64_t>(walk.row[0]) * kValueRowBytes + 4 * walk.column;
              for (int u = 0; u < quads.units; ++u) {
                const int quad = u * kUnitQuads + lane / 4;
                words[kQuadPlaces + u / 4] |= QuadPlace(quads.K(quad, lane % 4)) << 8 * (u % 4);
                uint32_t two[4];
#pragma unroll
                for (int r = 0; r < 4; ++r) two[r] = quads.Words<From>(QuadSlot(u, r));
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                  if (!(mask >> (8 * r + u) & 1)) continue;
                  *reinterpret_cast<uint32_t*>(to) = two[r];
                  to += kValueRowBytes;
                }
              }
              for (int w = 0; w < kQuadWords; ++w)
                *reinterpret_cast<uint32_t*>(block + MaskWordAt(kQuadWords, w, lane)) = words[w];
              block += MaskBlockBytes(kQuadWords);
            });
}

}  // namespace

void MeasureQuads(const WeightPlan& plan, const Source& source, cudaStream_t stream) {
  const Partition cut = MakePartition(plan);
  const QuadSource quads(plan, source, cut);
  const int64_t windows = int64_t{quads.runs} * quads.most_windows;
  BringTogether<<<static_cast<unsigned>((windows + kWarps - 1) / kWarps), 32 * kWarps, 0, stream>>>(cut, quads);
  MeasureRuns<<<(quads.runs + kWarps - 1) / kWarps, 32 * kWarps, 0, stream>>>(cut, quads);
}

cudaError_t FillQuads(const WeightPlan& plan, const Source& source, bool floats, uint8_t* layout, cudaStream_t stream) {
  const Partition cut = MakePartition(plan);
  const QuadSource quads(plan, source, cut);
  (floats ? FillRuns<float> : FillRuns<uint16_t>)<<<(quads.runs + kWarps - 1) / kWarps, 32 * kWarps, 0, stream>>>(
      cut, quads, layout);
  return cudaGetLastError();
}

}  // namespace flashllm::cuda
