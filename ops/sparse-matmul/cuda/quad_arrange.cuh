// Which k of a tile's window go together in columns of quads (layout.h), by greedy choices of one warp: pairs of
// columns whose nonzeros lie in the same rows, so that few words of two values hold a zero; and pairs of pairs without
// a row in common, so that a sparse product takes both at once, two by two so that their X lie in different banks.
#pragma once

#include "ops/sparse-matmul/cuda/convert.cuh"
#include "ops/sparse-matmul/cuda/quad_layout.h"

namespace flashllm::cuda {

constexpr int kMostPairs = kQuadWindowK / 2, kLanePairs = kMostPairs / 32;

__device__ __forceinline__ int MaxOfLanes(int value) { return __reduce_max_sync(kAllLanes, value); }

/// A choice among the lanes' items: the greatest score, the lowest number of those. 0: no item.
__device__ __forceinline__ int Key(int score, int number) { return (score + 1) << 8 | (255 - number); }
__device__ __forceinline__ int NumberOf(int key) { return 255 - (key & 255); }
__device__ __forceinline__ int ScoreOf(int key) { return (key >> 8) - 1; }

/// Items that are still to be had, a bit for each place of the lane's.
struct Left {
  uint32_t bits;

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
    // Without a branch: some lanes' items are gone nearly always.
    const int of = score(i), suits = left.bits << (31 - i) & ~of;
    const int own = Key(of, 32 * i + static_cast<int>(threadIdx.x & 31));
    key = max(key, suits < 0 ? own : 0);
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
  uint16_t columns[kQuadWindowK];  // the tile's nonzeros, a bit a row
  Pair pairs[kMostPairs];
  uint32_t groups[kMostPairs];      // bank groups of each pair's X
  uint32_t beside[kMostQuads / 2];  // and of two quads whose X is read together
  uint8_t quads[kMostQuads][2];     // numbers of pairs
  uint8_t singles[kMostQuads][2];   // quads that found no other to go with
  uint8_t alone[kMostPairs];        // pairs that found none
};

/// Reads the columns. Each lane has every 32nd of them too.
__device__ __forceinline__ void ReadColumns(const Source& s, int row0, int unit0, int units, Workspace* work,
                                            uint32_t (&own)[kQuadWindowUnits]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < kQuadWindowUnits; ++i) {
    const uint32_t word = i < units && lane < kTileRows ? Word(s, row0 + lane, unit0 + i) : 0;
    own[i] = 0;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) own[i] |= (__shfl_sync(kAllLanes, word, r) >> lane & 1) << r;
    work->columns[32 * i + lane] = static_cast<uint16_t>(own[i]);
  }
  __syncwarp();
}

/// Which of the eight bank groups of shared memory X of a k is in, and a count of one in that group's four bits.
__device__ __forceinline__ int BankGroupOf(int k) { return static_cast<int>(QuadPlace(k) & 7); }
__device__ __forceinline__ uint32_t BankGroup(int k) { return 1u << 4 * BankGroupOf(k); }

/// What another four's bank group counts for: half a row in common, or a row and a half of its own (docs/kernels.md).
constexpr int kOtherFour = 3;

/// How many X are in the bank group that has most, three standing for more too.
__device__ __forceinline__ int Most(uint32_t groups) {
  const bool two = (groups & 0xeeeeeeee) != 0,
             three = ((groups & 0xcccccccc) | (groups & groups >> 1 & 0x11111111)) != 0;
  return 1 + two + three;
}

/// The heaviest column that is left, and the one that has most rows in common with it and fewest of its own. One of the
/// other four bank groups may have a little less in common: pairs of one group of each four are more easily brought
/// together without conflicts.
__device__ __forceinline__ void PairColumns(const uint32_t (&own)[kQuadWindowUnits], int units, Workspace* work) {
  const int lane = threadIdx.x & 31;
  int weight[kQuadWindowUnits], group[kQuadWindowUnits];
#pragma unroll
  for (int c = 0; c < kQuadWindowUnits; ++c) weight[c] = __popc(own[c]), group[c] = BankGroupOf(32 * c + lane);
  // What differing bank groups count for, four bits for each difference.
  constexpr uint32_t kDiffer = 0x11111110 + kOtherFour * 0x11110000u;
  Left left = {(1u << units) - 1};
  for (int i = 0; i < units * kUnitK / 2; ++i) {
    const int first = Best<kQuadWindowUnits>(left, [&](int c) { return weight[c]; });
    left.Take(first);
    const uint32_t rows = work->columns[first], first_group = BankGroupOf(first);
    const int second = Best<kQuadWindowUnits>(left, [&](int c) {
      // Twice the rows in common, less those of its own alone; all that twice.
      const int common = 6 * __popc(own[c] & rows) - 2 * weight[c] + 2 * kTileRows;
      return common + static_cast<int>(kDiffer >> 4 * (group[c] ^ first_group) & 15);
    });
    left.Take(second);
    if (lane == 0) {
      Pair& pair = work->pairs[i];
      pair.rows = static_cast<uint16_t>(rows | work->columns[second]);
      pair.k[0] = static_cast<uint8_t>(first), pair.k[1] = static_cast<uint8_t>(second);
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
      weight_[i] = __popc(rows_[i]);
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
      const uint32_t rows = work_.pairs[first].rows, groups = work_.groups[first];
      const int second = Best<kLanePairs>(left_, [&](int i) {
        return (rows_[i] & rows) != 0 ? -1 : weight_[i] + (Most(groups_[i] + groups) == 1 ? kFits : 0);
      });
      if (second < 0) {
        if (lane_ == 0) work_.alone[alone] = static_cast<uint8_t>(first);
        ++alone;
        continue;
      }
      left_.Take(second);
      int third, fourth;
      const bool found = FindBeside(groups + work_.groups[second], &third, &fourth);
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
    return Best<kLanePairs>(of, [&](int i) { return weight_[i]; });
  }

  /// A quad to go with one whose X is in these bank groups.
  __device__ __forceinline__ bool FindBeside(uint32_t groups, int* third, int* fourth) const {
    constexpr int kTries = 4;
    const int most = Most(groups);
    bool found = false;
    Left untried = left_;
    for (int attempt = 0; attempt < kTries; ++attempt) {
      const int c =
          Best<kLanePairs>(untried, [&](int i) { return Most(groups_[i] + groups) > most ? -1 : weight_[i]; });
      if (c < 0) break;
      untried.Take(c);
      Left others = left_;
      others.Take(c);
      const uint32_t rows = work_.pairs[c].rows, three = groups + work_.groups[c];
      int score;
      const int d = Best<kLanePairs>(
          others,
          [&](int i) {
            const int conflicts = Most(groups_[i] + three);
            return (rows_[i] & rows) != 0 || conflicts > 2 ? -1 : weight_[i] + (conflicts == 1 ? kFits : 0);
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
    const uint32_t rows = work_.pairs[*third].rows;
    *fourth = Best<kLanePairs>(others, [&](int i) { return (rows_[i] & rows) != 0 ? -1 : weight_[i]; });
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
  int weight_[kLanePairs];                          // rows
  Left left_ = {0};
};

}  // namespace flashllm::cuda
