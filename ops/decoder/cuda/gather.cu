#include "ops/decoder/cuda/gather.h"

#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/launch.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

struct GatherParams {
  const void *table, *indices;
  void* y;
  int64_t table_rows, row_units, units;  // units of sizeof(Unit) bytes
  uint32_t* fault;
};

template <typename Unit, typename Index>
__global__ void __launch_bounds__(kThreads) GatherKernel(const __grid_constant__ GatherParams p) {
  LetNextStart();
  WaitForPrevious();
  for (int64_t item = FirstItem(); item < p.units; item += ItemStride()) {
    const int64_t row = item / p.row_units, column = item - row * p.row_units;
    int64_t from = static_cast<const Index*>(p.indices)[row];
    if (from < 0) from += p.table_rows;
    Unit unit = {};
    if (from >= 0 && from < p.table_rows)
      unit = static_cast<const Unit*>(p.table)[from * p.row_units + column];
    else if (column == 0)
      Report(p.fault, kFaultIndex);
    static_cast<Unit*>(p.y)[item] = unit;
  }
}

}  // namespace
}  // namespace decoder

cudaError_t LaunchGather(const GatherArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (args.index_type != DataType::kInt32 && args.index_type != DataType::kInt64) return cudaErrorInvalidValue;
  if (args.count == 0 || args.row_bytes == 0) return cudaSuccess;
  int64_t unit = 16;
  while (args.row_bytes % unit != 0 || !IsAligned(args.table, unit) || !IsAligned(args.y, unit)) unit /= 2;
  const int64_t row_units = args.row_bytes / unit;
  const GatherParams params{args.table, args.indices,           args.y,    args.table_rows,
                            row_units,  args.count * row_units, args.fault};
  return ForBytes(unit, [&](auto tag) {
    using Unit = typename decltype(tag)::Type;
    const auto kernel = args.index_type == DataType::kInt32 ? GatherKernel<Unit, int32_t> : GatherKernel<Unit, int64_t>;
    return LaunchKernel(kernel, BlocksFor(params.units, args.programmatic), params, stream);
  });
}

}  // namespace flashllm::cuda
