// Every tile has its own order of k in a window, by two greedy choices: pairs of columns whose nonzeros lie in the same
// rows, so that few words of two values hold a zero; and pairs of pairs without a row in common, so that a sparse
// product takes both at once.
#include "ops/sparse-matmul/cuda/quad_convert.h"

#include "ops/sparse-matmul/cuda/quad_layout.h"

namespace flashllm::cuda {
namespace {

constexpr int kMostPairs = kQuadWindowK / 2;
constexpr int kLanePairs = kMostPairs / 32;
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

__device__ __forceinline__ int MaxOfLanes(int value) { return __reduce_max_sync(kAllLanes, value); }

/// A choice among the lanes' items: the greatest score, the lowest number of those. 0: no item.
__device__ __forceinline__ int Key(int score, int number) { return (score + 1) << 8 | (255 - number); }
__device__ __forceinline__ int NumberOf(int key) { return 255 - (key & 255); }
__device__ __forceinline__ int ScoreOf(int key) { return (key >> 8) - 1; }

/// Item `number` of those that lanes have, number % 32 in lane and number / 32 in place.
template <int kPlaces>
__device__ __forceinline__ uint32_t Item(const uint32_t (&items)[kPlaces], int number) {
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) mine = number / 32 == i ? items[i] : mine;
  return __shfl_sync(kAllLanes, mine, number % 32);
}

/// Items that are still to be had, a bit for each place of the lane's.
struct Left {
  uint32_t bits;

  __device__ __forceinline__ bool Has(int place) const { return (bits >> place & 1) != 0; }
  __device__ __forceinline__ void Take(int number) {
    if (number % 32 == static_cast<int>(threadIdx.x & 31)) bits &= ~(1u << number / 32);
  }
};

/// The best of the lanes' items that are left, by score(place), which is below 0 for those that do not suit; its
/// number, or -1.
template <int kPlaces, typename Score>
__device__ __forceinline__ int Best(Left left, const Score& score, int* best_score = nullptr) {
  int key = 0;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    if (!left.Has(i)) continue;
    const int of = score(i);
    if (of >= 0) key = max(key, Key(of, 32 * i + static_cast<int>(threadIdx.x & 31)));
  }
  key = MaxOfLanes(key);
  if (best_score != nullptr) *best_score = ScoreOf(key);
  return key == 0 ? -1 : NumberOf(key);
}

/// What a pair of columns is: the rows in which either has a nonzero, and their k in the window.
struct Pair {
  uint16_t rows;
  uint8_t k[2];
};

struct Workspace {
  Pair pairs[kMostPairs];
  uint32_t groups[kMostPairs];      // bank groups of each pair's X
  uint32_t beside[kMostQuads / 2];  // and of two quads whose X is read together
  uint8_t quads[kMostQuads][2];     // numbers of pairs
  uint8_t singles[kMostQuads][2];   // quads that found no other to go with
  uint8_t alone[kMostPairs];        // pairs that found none
};

/// Columns as bits of their 16 rows, column k of the window in lane k % 32.
__device__ __forceinline__ void ReadColumns(const Source& s, int row0, int unit0, int units,
                                            uint32_t (&columns)[kQuadWindowUnits]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < kQuadWindowUnits; ++i) {
    const uint32_t word = i < units && lane < kTileRows ? Word(s, row0 + lane, unit0 + i) : 0;
    columns[i] = 0;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) columns[i] |= (__shfl_sync(kAllLanes, word, r) >> lane & 1) << r;
  }
}

/// Which of the eight bank groups of shared memory X of a k is in, and a count of one in that group's four bits.
__device__ __forceinline__ int BankGroupOf(int k) { return static_cast<int>(QuadPlace(k) & 7); }
__device__ __forceinline__ uint32_t BankGroup(int k) { return 1u << 4 * BankGroupOf(k); }

/// What another four's bank group counts for: a row and a half in common (docs/kernels.md).
constexpr int kOtherFour = 3;

/// How many X are in the bank group that has most.
__device__ __forceinline__ int Most(uint32_t groups) {
  int most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) most = max(most, static_cast<int>(groups >> 4 * i & 15));
  return most;
}

/// The heaviest column that is left, and the one that has most rows in common with it and fewest of its own. One of the
/// other four bank groups may have a little less in common: pairs of one group of each four are more easily brought
/// together without conflicts.
__device__ __forceinline__ void PairColumns(const uint32_t (&columns)[kQuadWindowUnits], int units, Pair* pairs) {
  const int lane = threadIdx.x & 31;
  Left left = {(1u << units) - 1};
  for (int i = 0; i < units * kUnitK / 2; ++i) {
    const int first = Best<kQuadWindowUnits>(left, [&](int c) { return __popc(columns[c]); });
    left.Take(first);
    const uint32_t rows = Item(columns, first);
    const int second = Best<kQuadWindowUnits>(left, [&](int c) {
      const int common = 2 * __popc(columns[c] & rows) + kTileRows - __popc(columns[c] & ~rows);
      const int differ = BankGroupOf(32 * c + lane) ^ BankGroupOf(first);
      return 2 * common + (differ != 0) + (differ >= 4 ? kOtherFour : 0);
    });
    left.Take(second);
    const uint32_t either = rows | Item(columns, second);
    if (lane == 0) {
      pairs[i].rows = static_cast<uint16_t>(either);
      pairs[i].k[0] = static_cast<uint8_t>(first), pairs[i].k[1] = static_cast<uint8_t>(second);
    }
  }
  __syncwarp();
}

/// Brings pairs together: two without a row in common are a quad, and two quads have their X read together (ldmatrix),
/// best from eight bank groups. The heaviest are served first. Returns how many quads there are; pairs without a
/// nonzero are in none.
class PairArranger {
 public:
  __device__ __forceinline__ PairArranger(Workspace& work, int units) : work_(work), lane_(threadIdx.x & 31) {
#pragma unroll
    for (int i = 0; i < kLanePairs; ++i) {
      const int number = 32 * i + lane_;
      const bool exists = number < units * kUnitK / 2;
      rows_[i] = exists ? work.pairs[number].rows : 0;
      groups_[i] = exists ? BankGroup(work.pairs[number].k[0]) + BankGroup(work.pairs[number].k[1]) : 0;
      work.groups[number] = groups_[i];
      if (rows_[i] != 0) left_.bits |= 1u << i;
    }
    __syncwarp();
  }

  __device__ __forceinline__ int Run() {
    int quads = 0, singles = 0, alone = 0;
    while (true) {
      const int first = Heaviest(left_);
      if (first < 0) break;
      left_.Take(first);
      const uint32_t rows = Item(rows_, first), groups = Item(groups_, first);
      const int second = Best<kLanePairs>(left_, [&](int i) {
        return (rows_[i] & rows) != 0 ? -1 : __popc(rows_[i]) + (Most(groups_[i] + groups) == 1 ? kFits : 0);
      });
      if (second < 0) {
        if (lane_ == 0) work_.alone[alone] = static_cast<uint8_t>(first);
        ++alone;
        continue;
      }
      left_.Take(second);
      int third, fourth;
      const bool found = FindBeside(groups + Item(groups_, second), &third, &fourth);
      if (lane_ == 0) Set(found ? work_.quads[quads] : work_.singles[singles], first, second);
      if (!found) {
        ++singles;
        continue;
      }
      left_.Take(third);
      left_.Take(fourth);
      if (lane_ == 0) Set(work_.quads[quads + 1], third, fourth);
      quads += 2;
    }
    __syncwarp();
    Exchange(quads);
    if (lane_ == 0) {
      for (int i = 0; i < singles; ++i) Set(work_.quads[quads + i], work_.singles[i][0], work_.singles[i][1]);
    }
    __syncwarp();
    return Rejoin(quads + singles, alone);
  }

 private:
  static constexpr int kFits = 32;  // outweighs any number of rows

  static __device__ __forceinline__ void Set(uint8_t (&quad)[2], int first, int second) {
    quad[0] = static_cast<uint8_t>(first), quad[1] = static_cast<uint8_t>(second);
  }

  __device__ __forceinline__ int Heaviest(Left of) const {
    return Best<kLanePairs>(of, [&](int i) { return __popc(rows_[i]); });
  }

  /// A quad to go with one whose X is in these bank groups.
  __device__ __forceinline__ bool FindBeside(uint32_t groups, int* third, int* fourth) const {
    constexpr int kTries = 4;
    const int most = max(1, Most(groups));
    bool found = false;
    Left untried = left_;
    for (int i = 0; i < kTries; ++i) {
      const int c =
          Best<kLanePairs>(untried, [&](int i) { return Most(groups_[i] + groups) > most ? -1 : __popc(rows_[i]); });
      if (c < 0) break;
      untried.Take(c);
      Left others = left_;
      others.Take(c);
      const uint32_t rows = Item(rows_, c), three = groups + Item(groups_, c);
      int score;
      const int d = Best<kLanePairs>(
          others,
          [&](int i) {
            const int conflicts = Most(groups_[i] + three);
            return (rows_[i] & rows) != 0 || conflicts > 2 ? -1 : __popc(rows_[i]) + (conflicts == 1 ? kFits : 0);
          },
          &score);
      if (d < 0 || (found && score < kFits)) continue;
      *third = c, *fourth = d, found = true;
      if (score >= kFits) break;
    }
    if (found) return true;
    *third = Heaviest(left_);
    if (*third < 0) return false;
    Left others = left_;
    others.Take(*third);
    const uint32_t rows = Item(rows_, *third);
    *fourth = Best<kLanePairs>(others, [&](int i) { return (rows_[i] & rows) != 0 ? -1 : __popc(rows_[i]); });
    return *fourth >= 0;
  }

  /// What conflicts cost: each wavefront more than one, and a little for what may become one.
  static __device__ __forceinline__ int Cost(uint32_t groups) {
    constexpr uint32_t kOnes = 0x11111111;
    const uint32_t empty = kOnes & ~(groups | groups >> 1 | groups >> 2);
    return 16 * Most(groups) + __popc(empty);
  }

  /// Pairs change places where that makes conflicts fewer. `quads`: which go together two by two.
  __device__ __forceinline__ void Exchange(int quads) {
    for (int m = lane_; m < quads / 2; m += 32) {
      uint32_t groups = 0;
      for (int i = 0; i < 4; ++i) groups += work_.groups[work_.quads[2 * m + i / 2][i % 2]];
      work_.beside[m] = groups;
    }
    __syncwarp();
    for (int m = 0; m < quads / 2; ++m) {
      for (int i = 0; i < 4 && Most(work_.beside[m]) > 1; ++i) {
        uint8_t& place = work_.quads[2 * m + i / 2][i % 2];
        const int mine = place;
        const uint32_t rows = work_.pairs[mine].rows, beside = work_.beside[m] - work_.groups[mine],
                       partner = work_.pairs[work_.quads[2 * m + i / 2][1 - i % 2]].rows;
        const int cost = Cost(work_.beside[m]);
        int key = 0;
        for (int at = lane_; at < 2 * quads; at += 32) {
          if (at / 4 == m) continue;
          const int other = work_.quads[at / 2][at % 2];
          if ((work_.pairs[other].rows & partner) != 0 ||
              (rows & work_.pairs[work_.quads[at / 2][1 - at % 2]].rows) != 0)
            continue;
          const uint32_t there = work_.beside[at / 4], change = work_.groups[mine] - work_.groups[other];
          const int gain = cost + Cost(there) - Cost(beside + work_.groups[other]) - Cost(there + change);
          if (gain > 0) key = max(key, Key(gain, at));
        }
        key = MaxOfLanes(key);
        if (key == 0) continue;
        const int at = NumberOf(key), other = work_.quads[at / 2][at % 2];
        __syncwarp();
        if (lane_ == 0) {
          work_.quads[at / 2][at % 2] = static_cast<uint8_t>(mine), place = static_cast<uint8_t>(other);
          work_.beside[at / 4] += work_.groups[mine] - work_.groups[other];
          work_.beside[m] = beside + work_.groups[other];
        }
        __syncwarp();
      }
    }
  }

  /// Two that are left alone take the two of a quad that suits them. One that stays alone stands for its partner too:
  /// nothing of that is ever read.
  __device__ __forceinline__ int Rejoin(int quads, int alone) {
    constexpr int kTries = 64;
    for (int i = 0, tries = 0; i + 1 < alone && tries < kTries; ++tries) {
      const int a = work_.alone[i], b = work_.alone[i + 1];
      const uint32_t rows_a = work_.pairs[a].rows, rows_b = work_.pairs[b].rows;
      int found = 0;
      for (int q = lane_; q < quads; q += 32) {
        const uint32_t c = work_.pairs[work_.quads[q][0]].rows, d = work_.pairs[work_.quads[q][1]].rows;
        if (((rows_a & c) | (rows_b & d)) == 0) found = max(found, Key(1, q));
        if (((rows_a & d) | (rows_b & c)) == 0) found = max(found, Key(0, q));
      }
      found = MaxOfLanes(found);
      if (found == 0) {
        ++i;
        continue;
      }
      const int q = NumberOf(found), c = work_.quads[q][0], d = work_.quads[q][1], straight = ScoreOf(found);
      __syncwarp();
      if (lane_ == 0) {
        Set(work_.quads[q], a, straight ? c : d);
        Set(work_.quads[quads], b, straight ? d : c);
        for (int j = i; j + 2 < alone; ++j) work_.alone[j] = work_.alone[j + 2];
      }
      ++quads, alone -= 2;
      __syncwarp();
    }
    if (lane_ == 0) {
      for (int i = 0; i < alone; ++i) Set(work_.quads[quads + i], work_.alone[i], work_.alone[i]);
    }
    __syncwarp();
    return quads + alone;
  }

  Workspace& work_;
  const int lane_;
  uint32_t rows_[kLanePairs], groups_[kLanePairs];  // of pairs
  Left left_ = {0};
};

/// One stage of a window: quads from `first` on.
class StageQuads {
 public:
  __device__ StageQuads(const Source& s, const QuadWindow* window, int row0, int unit0, int first)
      : s_(s), window_(window), row0_(row0), unit0_(unit0), first_(first) {
    const int left = Padded(static_cast<int>(window->count)) - first;
    units = min(left / kUnitQuads, kQuadWindowUnits);
    more = left > kQuadWindowUnits * kUnitQuads;
  }

  int units;
  bool more;  // of the window's quads than the stage has

  /// Quads of whole units, one at least.
  static __device__ int Padded(int count) { return max(1, (count + kUnitQuads - 1) / kUnitQuads) * kUnitQuads; }

  /// Which pair of quad `q` of the stage has a nonzero in the tile's row `row`: 0, 1, or -1. Of one that fills a unit
  /// none is told.
  __device__ int PairOf(int row, int q) const {
    return !IsReal(q) ? -1 : HasNonzero(row, q, 0) ? 0 : HasNonzero(row, q, 1) ? 1 : -1;
  }

  /// Whether a row's product takes the second pair of quad `q`.
  __device__ bool TakesSecond(int row, int q) const { return IsReal(q) ? PairOf(row, q) == 1 : HasNonzero(row, q, 0); }

  /// The k in the window of one of a quad's four.
  __device__ int K(int q, int place) const { return window_->quads[first_ + q] >> 8 * place & 255; }

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

 private:
  __device__ bool IsReal(int q) const { return first_ + q < static_cast<int>(window_->count); }

  __device__ bool HasNonzero(int row, int q, int pair) const {
    return Bit(row, K(q, 2 * pair)) || Bit(row, K(q, 2 * pair + 1));
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
  uint32_t columns[kQuadWindowUnits];
  ReadColumns(s.source, panel.first_tile * kTileRows, unit0, units, columns);
  PairColumns(columns, units, workspaces[warp].pairs);
  Workspace& work = workspaces[warp];
  const int count = PairArranger(work, units).Run();
  QuadWindow* const window = s.windows + number;
  const int lane = threadIdx.x & 31, pairs = units * kUnitK / 2;
  // What fills the last unit is multiplied by zeros, and must have zeros there: X may be infinite. The last pair is an
  // empty one, if there is any; else a quad of two pairs serves, of which a row takes that where it has none. Without
  // either each pair is alone, and units are full.
  uint32_t filler = 0;
  for (int q = lane; q < count; q += 32) {
    if (work.quads[q][0] != work.quads[q][1]) filler = work.quads[q][0] | work.quads[q][1] << 8;
  }
  filler = MaxOfLanes(static_cast<int>(filler));
  if (work.pairs[pairs - 1].rows == 0) filler = (pairs - 1) | (pairs - 1) << 8;
  for (int q = lane; q < StageQuads::Padded(count); q += 32) {
    const Pair& a = work.pairs[q < count ? work.quads[q][0] : filler & 255];
    const Pair& b = work.pairs[q < count ? work.quads[q][1] : filler >> 8];
    window->quads[q] = a.k[0] | a.k[1] << 8 | b.k[0] << 16 | static_cast<uint32_t>(b.k[1]) << 24;
  }
  if (lane == 0) window->count = count;
}

/// A lane's slot: register r of the fragment of unit u.
struct QuadSlot {
  int row, quad;

  __device__ QuadSlot(int u, int r) {
    const int lane = threadIdx.x & 31;
    row = lane / 4 + 8 * (r & 1), quad = u * kUnitQuads + lane % 4 + 4 * (r >> 1);
  }
};

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
          if (quads.PairOf(slot.row, slot.quad) >= 0) mask |= 1u << (8 * r + u);
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

/// The lane's share of which pair is whose, of its fragments' sparse products: layout.h.
__device__ __forceinline__ uint32_t SecondPairs(const StageQuads& quads) {
  const int lane = threadIdx.x & 31, t = lane % 4;
  uint32_t second = 0;
  for (int j = 0; j < kQuadWindowUnits / 2; ++j) {
    const int unit = 2 * j + t / 2;
    for (int i = 0; i < 8; ++i) {
      const int quad = unit * kUnitQuads + 4 * (t % 2) + i % 4;
      if (unit < quads.units && quads.TakesSecond(lane / 4 + i / 4 * 8, quad)) second |= 1u << (4 * i + j);
    }
  }
  return second;
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
              words[kQuadSecond] = SecondPairs(quads);
              uint8_t* to = values + static_cast<int64_t>(walk.row[0]) * kValueRowBytes + 4 * walk.column;
              for (int u = 0; u < quads.units; ++u) {
                const int quad = u * kUnitQuads + lane / 4;
                words[kQuadPlaces + u / 4] |= QuadPlace(quads.K(quad, lane % 4)) << 8 * (u % 4);
                for (int r = 0; r < 4; ++r) {
                  if (!(mask >> (8 * r + u) & 1)) continue;
                  const QuadSlot slot(u, r);
                  const int pair = quads.PairOf(slot.row, slot.quad);
                  *reinterpret_cast<uint32_t*>(to) = quads.Element<From>(slot.row, quads.K(slot.quad, 2 * pair)) |
                                                     quads.Element<From>(slot.row, quads.K(slot.quad, 2 * pair + 1))
                                                         << 16;
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
