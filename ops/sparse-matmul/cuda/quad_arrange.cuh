// Which k of a tile's window go together in columns of quads (layout.h), by greedy choices of one warp: pairs of
// columns without a row in common, and quads of two pairs whose nonzeros lie in the same rows, so that few words of two
// values hold a zero; the eight columns of two quads, whose X is read together, from as many banks as there are.
#pragma once

#include "ops/sparse-matmul/cuda/convert.cuh"
#include "ops/sparse-matmul/cuda/quad_layout.h"

namespace flashllm::cuda {

__device__ __forceinline__ int MaxOfLanes(int value) { return __reduce_max_sync(kAllLanes, value); }

/// A choice among the lanes' items: the greatest score, the lowest number of those. 0: no item.
__device__ __forceinline__ int Key(int score, int number) { return (score + 1) << 8 | (255 - number); }
__device__ __forceinline__ int NumberOf(int key) { return 255 - (key & 255); }

struct Workspace {
  uint16_t columns[kQuadWindowK];     // the tile's nonzeros, a bit a row
  uint32_t quads[kMostQuads];         // their k, a byte each
  uint32_t groups[kMostQuads];        // bank groups of each quad's X (BankGroup)
  uint32_t together[kMostQuads / 2];  // and of two quads whose X is read together
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

/// How many X are in the bank group that has most, four standing for more too.
__device__ __forceinline__ int Most(uint32_t groups) {
  const bool two = (groups & 0xeeeeeeee) != 0,
             three = ((groups & 0xcccccccc) | (groups & groups >> 1 & 0x11111111)) != 0,
             four = (groups & 0xcccccccc) != 0;
  return 1 + two + three + four;
}

/// One window's columns into pairs and quads, by a warp.
class QuadArranger {
 public:
  /// `own`: the lane's columns of so many units.
  __device__ __forceinline__ QuadArranger(Workspace* work, const uint32_t (&own)[kQuadWindowUnits], int units)
      : work_(*work), lane_(threadIdx.x & 31) {
    int empty = 0;
#pragma unroll
    for (int i = 0; i < kQuadWindowUnits; ++i) {
      columns_[i] = own[i];
      if (own[i] != 0) left_ |= 1u << i;
      if (own[i] == 0 && i < units) empty = Key(0, 32 * i + lane_);
    }
    empty = MaxOfLanes(empty);
    if (empty != 0) filler_ = NumberOf(empty) | NumberOf(empty) << 8;
  }

  /// Fills the workspace's quads and returns how many pairs they have: those that have nonzeros.
  __device__ __forceinline__ int Run() {
    int pairs = 0;
    uint32_t together = 0;
    while (true) {
      if (pairs % 4 == 0) together = 0;
      const uint32_t before = together;
      uint32_t rows = kAllRows, quad;
      if (!TakePair(&rows, &together, &quad)) break;
      ++pairs;
      uint32_t second;
      const bool whole = TakePair(&rows, &together, &second);
      if (whole) quad |= second << 16, ++pairs;
      if (lane_ == 0) {
        const int number = (pairs - 1) / 2;
        work_.quads[number] = quad, work_.groups[number] = together - before;
        if (number % 2 == 1) work_.together[number / 2] = together;
      }
      if (!whole) break;
    }
    __syncwarp();
    Exchange(pairs / 4 * 2);
    return pairs;
  }

  /// A pair, its k in a byte each, that fills up the last unit: multiplied by zeros, it must have a zero in every row,
  /// as X may be infinite. Any two columns without a row in common serve, or an empty one. Where there is neither, each
  /// column is a pair alone, and units are full.
  __device__ __forceinline__ uint32_t filler() const { return filler_; }

 private:
  static constexpr uint32_t kAllRows = (1u << kTileRows) - 1;
  /// What a score counts: a row of those that are wanted and a row, and an X more in the bank group
  /// (docs/kernels-experiments.md).
  static constexpr int kWanted = 3, kRow = -1, kBank = -5;
  static constexpr int kNotNegative = -(kRow * kTileRows + kBank * 8);  // added to all scores

  /// Of the columns that are left and have none of these rows, the one with most rows of `wanted` and fewest others
  /// whose bank group is not taken; -1 if there is none.
  __device__ __forceinline__ int Take(uint32_t wanted, uint32_t excluded, uint32_t groups) {
    int key = 0;
#pragma unroll
    for (int i = 0; i < kQuadWindowUnits; ++i) {
      const int number = 32 * i + lane_;
      const int score = kNotNegative + kWanted * __popc(columns_[i] & wanted) + kRow * __popc(columns_[i]) +
                        kBank * static_cast<int>(groups >> 4 * BankGroupOf(number) & 15);
      const bool suits = (left_ >> i & 1) != 0 && (columns_[i] & excluded) == 0;
      key = max(key, suits ? Key(score, number) : 0);
    }
    key = MaxOfLanes(key);
    if (key == 0) return -1;
    const int number = NumberOf(key);
    if (number % 32 == lane_) left_ &= ~(1u << number / 32);
    return number;
  }

  /// The pair that suits `rows` best, and its rows and bank groups. Without a column that suits the first, that is both
  /// of the pair. False if no columns are left.
  __device__ __forceinline__ bool TakePair(uint32_t* rows, uint32_t* groups, uint32_t* pair) {
    const int first = Take(*rows, 0, *groups);
    if (first < 0) return false;
    *groups += BankGroup(first);
    const uint32_t taken = work_.columns[first];
    int second = Take(*rows, taken, *groups);
    if (second >= 0)
      *groups += BankGroup(second);
    else
      second = first;
    *pair = first | second << 8;
    if (second != first) filler_ = *pair;
    *rows = taken | work_.columns[second];
    return true;
  }

  /// Quads change places where that makes bank conflicts fewer: the first `quads`, two by two.
  __device__ __forceinline__ void Exchange(int quads) {
    constexpr int kPasses = 2;
    for (int i = 0; i < kPasses * quads; ++i) {
      const int mine = i % quads;
      const uint32_t here = work_.together[mine / 2];
      if (Most(here) == 1) continue;
      int key = 0;
      for (int other = lane_; other < quads; other += 32) {
        if (other / 2 == mine / 2) continue;
        const uint32_t there = work_.together[other / 2], change = work_.groups[mine] - work_.groups[other];
        const int fewer = Most(here) + Most(there) - Most(here - change) - Most(there + change);
        if (fewer > 0) key = max(key, Key(fewer, other));
      }
      key = MaxOfLanes(key);
      if (key == 0) continue;
      const int other = NumberOf(key);
      __syncwarp();
      if (lane_ == 0) {
        const uint32_t change = work_.groups[mine] - work_.groups[other];
        work_.together[mine / 2] -= change, work_.together[other / 2] += change;
        Swap(&work_.groups[mine], &work_.groups[other]);
        Swap(&work_.quads[mine], &work_.quads[other]);
      }
      __syncwarp();
    }
  }

  static __device__ __forceinline__ void Swap(uint32_t* a, uint32_t* b) {
    const uint32_t kept = *a;
    *a = *b, *b = kept;
  }

  Workspace& work_;
  const int lane_;
  uint32_t columns_[kQuadWindowUnits], left_ = 0;  // a bit for each that is left
  uint32_t filler_ = 0;
};

}  // namespace flashllm::cuda
