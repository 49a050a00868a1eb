// The plan's partition as kernels take it: by value, in constant memory, so that no load precedes the first use.
#pragma once

#include <algorithm>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

struct Partition {
  int units;         // of 32 k
  int cluster;       // thread blocks of a row block
  int record_words;  // of a RunRecord
  uint16_t tile_start[kMaxBlocks + 1];
  uint16_t panel_start[kMaxBlocks + 1];
};

inline Partition MakePartition(const WeightPlan& plan) {
  Partition partition = {};
  partition.units = static_cast<int>((plan.in_features + kUnitK - 1) / kUnitK);
  partition.cluster = plan.cluster;
  partition.record_words = plan.record_words;
  std::copy(plan.tile_start.begin(), plan.tile_start.end(), partition.tile_start);
  std::copy(plan.panel_start.begin(), plan.panel_start.end(), partition.panel_start);
  return partition;
}

}  // namespace flashllm::cuda
