// Launches the kernel for teams of four warps.
#pragma once

#include "ops/sparse-matmul/cuda/row_group_kernel.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_instance.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_kernel.cuh"
#include "ops/sparse-matmul/cuda/wide_kernel.cuh"

namespace flashllm::cuda {

/// Instances for 8, 16, 32, 64 and 128 columns.
template <Columns kColumns>
struct GroupInstances {
  template <int kNTiles, int kGroups>
  using Instance = GroupInstance<GroupShape<kNTiles, kGroups>, GroupMatMul<kColumns, kNTiles, kGroups>>;
  using N8 = Instance<1, 4>;
  using N16 = Instance<2, 4>;
  using N32 = Instance<4, 4>;
  using N64 = Instance<8, 2>;
  using N128 = GroupInstance<WideShape, WideMatMul<kColumns>>;
  /// Accumulator tiles for which the warps of so many row blocks have registers.
  template <int kRowGroups>
  static constexpr int kMostRowGroupTiles = kRowGroups == 3 ? 8 : 16;
  /// Of layouts with so many row blocks a thread block.
  template <int kNTiles, int kRowGroups>
  using RowGroups =
      GroupInstance<RowGroupShape<kColumns, kNTiles, kRowGroups>, RowGroupMatMul<kColumns, kNTiles, kRowGroups>>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    if (HasRowGroups(plan.team)) {
      const auto launch = plan.row_groups == 2   ? LaunchRowGroups<2>
                          : plan.row_groups == 3 ? LaunchRowGroups<3>
                                                 : LaunchRowGroups<4>;
      return launch(plan, layout, args, stream);
    }
    // Blocks of 128 columns; what is left of 64 or fewer goes by a kernel for so many.
    const int64_t left = args.n % N128::kWidth <= N64::kWidth ? args.n % N128::kWidth : 0, wide = args.n - left;
    if (!TakesWideColumns(plan) || wide == 0) return LaunchNarrow(plan, layout, args, stream);
    const cudaError_t error = N128::Launch(plan, layout, SliceColumns(plan, args, 0, wide), stream);
    if (error != cudaSuccess || left == 0) return error;
    MatMulArgs last = SliceColumns(plan, args, wide, left);
    last.programmatic = true;  // the kernel before writes nothing that it reads ahead of its wait
    return LaunchNarrow(plan, layout, last, stream);
  }

  /// Blocks of kManyColumns; what is left goes by a kernel for so many.
  template <int kRowGroups>
  static cudaError_t LaunchMany(const WeightPlan& plan, const void* layout, const MatMulArgs& args,
                                cudaStream_t stream) {
    constexpr auto kLaunch = kColumns == Columns::kHalves ? LaunchManyHalves : LaunchManyWords;
    const int64_t beyond = args.n % kManyColumns;
    const int64_t left = args.n < kManyColumns || beyond > kFewerManyColumns ? 0 : beyond, many = args.n - left;
    const cudaError_t error = kLaunch(plan, layout, SliceColumns(plan, args, 0, many), stream);
    if (error != cudaSuccess || left == 0) return error;
    MatMulArgs last = SliceColumns(plan, args, many, left);
    last.programmatic = true;  // the kernel before writes nothing that it reads ahead of its wait
    return LaunchRowGroups<kRowGroups>(plan, layout, last, stream);
  }

  template <int kRowGroups>
  static cudaError_t LaunchRowGroups(const WeightPlan& plan, const void* layout, const MatMulArgs& args,
                                     cudaStream_t stream) {
    const bool many =
        args.n > kMostWideColumns && TakesManyColumns(plan) && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
    if (many) return LaunchMany<kRowGroups>(plan, layout, args, stream);
    const auto launch = args.n <= 32   ? RowGroups<4, kRowGroups>::Launch
                        : args.n <= 64 ? RowGroups<8, kRowGroups>::Launch
                                       : RowGroups<kMostRowGroupTiles<kRowGroups>, kRowGroups>::Launch;
    return launch(plan, layout, args, stream);
  }

  static cudaError_t LaunchNarrow(const WeightPlan& plan, const void* layout, const MatMulArgs& args,
                                  cudaStream_t stream) {
    const auto launch = args.n <= 8    ? N8::Launch
                        : args.n <= 16 ? N16::Launch
                        : args.n <= 32 ? N32::Launch
                                       : N64::Launch;
    return launch(plan, layout, args, stream);
  }

  template <int kRowGroups>
  static cudaError_t PrepareRowGroups(bool* exists) {
    for (auto prepare : {RowGroups<4, kRowGroups>::Prepare, RowGroups<8, kRowGroups>::Prepare,
                         RowGroups<kMostRowGroupTiles<kRowGroups>, kRowGroups>::Prepare}) {
      const cudaError_t error = prepare(exists);
      if (error != cudaSuccess || !*exists) return error;
    }
    return cudaSuccess;
  }

  static cudaError_t Prepare(DeviceInfo* info) {
    return PrepareGroups(info, {N8::Prepare, N16::Prepare, N32::Prepare, N64::Prepare, N128::Prepare,
                                PrepareRowGroups<2>, PrepareRowGroups<3>, PrepareRowGroups<4>});
  }
};

}  // namespace flashllm::cuda
