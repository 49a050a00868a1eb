// What the kernels that bring column layouts back share: some row blocks' runs, and where they go.
#pragma once

#include "ops/cuda/launch.h"
#include "ops/sparse-matmul/cuda/column_run.cuh"
#include "ops/sparse-matmul/cuda/dense_target.cuh"

namespace flashllm::cuda {

struct ExpandParams {
  ColumnParams columns;  // of which X and Y are not used
  DenseTarget dense;
  int first_run, end_run;
};

inline ExpandParams MakeExpandParams(const WeightPlan& plan, const void* layout, int first_block, int end_block,
                                     const DenseTarget& dense) {
  const MatMulArgs none;
  ExpandParams params = {};
  params.columns = MakeParams(plan, layout, none);
  params.dense = dense;
  const int block_runs = RunCount(plan) / plan.blocks;
  params.first_run = first_block * block_runs, params.end_run = end_block * block_runs;
  return params;
}

/// The launch of a kernel whose thread blocks have so many runs, and so many warps for each.
inline LaunchShape ExpandShape(const ExpandParams& params, int runs, int run_warps, int shared_bytes,
                               bool programmatic) {
  LaunchShape shape;
  shape.grid = dim3((params.end_run - params.first_run + runs - 1) / runs);
  shape.threads = 32 * runs * run_warps;
  shape.shared_bytes = shared_bytes;
  shape.programmatic = programmatic;
  return shape;
}

}  // namespace flashllm::cuda
