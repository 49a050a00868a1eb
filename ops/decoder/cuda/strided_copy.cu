#include "ops/decoder/cuda/strided_copy.h"

#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/launch.cuh"
#include "ops/decoder/cuda/strided_index.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

struct CopyParams {
  const void* from;
  void* to;
  StridedIndex<2> index;
};

template <typename Unit, typename Unsigned>
__global__ void __launch_bounds__(kThreads) StridedCopyKernel(const __grid_constant__ CopyParams p) {
  LetNextStart();
  WaitForPrevious();
  for (int64_t item = FirstItem(); item < p.index.count; item += ItemStride()) {
    int64_t at[2];
    p.index.Locate<Unsigned>(item, at);
    static_cast<Unit*>(p.to)[at[1]] = static_cast<const Unit*>(p.from)[at[0]];
  }
}

/// Makes units of twice the size where the innermost axis is contiguous on both sides and everything is even.
bool Widen(CopyParams* params, int64_t* bytes) {
  StridedIndex<2>& index = params->index;
  if (*bytes >= 16 || index.rank == 0 || !IsAligned(params->from, *bytes * 2) || !IsAligned(params->to, *bytes * 2))
    return false;
  const int inner = index.rank - 1;
  if (index.strides[0][inner] != 1 || index.strides[1][inner] != 1 || index.dims[inner] % 2 != 0) return false;
  for (int axis = 0; axis < inner; ++axis) {
    if (index.strides[0][axis] % 2 != 0 || index.strides[1][axis] % 2 != 0) return false;
  }
  for (int axis = 0; axis < inner; ++axis) index.strides[0][axis] /= 2, index.strides[1][axis] /= 2;
  index.dims[inner] /= 2;
  index.count /= 2;
  *bytes *= 2;
  return true;
}

}  // namespace
}  // namespace decoder

cudaError_t LaunchStridedCopy(const StridedCopyArgs& args, cudaStream_t stream) {
  using namespace decoder;
  int64_t bytes = args.element_bytes;
  if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8) return cudaErrorInvalidValue;
  CopyParams params{static_cast<const char*>(args.from) + args.from_offset * bytes,
                    static_cast<char*>(args.to) + args.to_offset * bytes,
                    {}};
  for (int i = 0; i < args.shape.rank; ++i)
    params.index.Append(args.shape.dims[i], {args.from_strides[i], args.to_strides[i]});
  if (params.index.count == 0) return cudaSuccess;
  while (Widen(&params, &bytes)) {
  }
  return ForBytes(bytes, [&](auto tag) {
    using Unit = typename decltype(tag)::Type;
    const auto kernel =
        params.index.count <= UINT32_MAX ? StridedCopyKernel<Unit, uint32_t> : StridedCopyKernel<Unit, uint64_t>;
    return LaunchKernel(kernel, BlocksFor(params.index.count, args.programmatic), params, stream);
  });
}

}  // namespace flashllm::cuda
