// Attention of many new tokens: 64 queries of one head a thread block, 16 a warp, against tiles of 64 positions on
// Tensor Cores, with an online softmax (FlashAttention-2, arXiv 2307.08691). One launch: new keys and values are read
// where the QKV product left them, and each thread block brings those of its own tokens into the present cache, with a
// share of the past where that lies elsewhere.
#include "ops/decoder/cuda/attention_kernels.h"
#include "ops/decoder/cuda/attention_prefill_mma.cuh"
#include "ops/decoder/cuda/attention_prefill_wgmma.cuh"
#include "ops/decoder/cuda/element.cuh"

namespace flashllm::cuda::decoder {
namespace {

/// A head's keys and values: `past` positions in the past cache, then the new tokens.
struct Source {
  const __half *past_key, *past_value, *new_key, *new_value;
  int past;
  int64_t past_stride, new_stride;

  __device__ __forceinline__ Source(const AttentionArgs& p, int64_t batch, int64_t head, const Lengths& lengths)
      : past(lengths.past), past_stride(p.head_dim), new_stride(p.token_stride) {
    const int64_t of_past = CacheOffset(p, batch, head, p.past_capacity), of_new = TokenOffset(p, batch, 0, head);
    past_key = static_cast<const __half*>(p.past_key) + of_past;
    past_value = static_cast<const __half*>(p.past_value) + of_past;
    new_key = static_cast<const __half*>(p.key) + of_new;
    new_value = static_cast<const __half*>(p.value) + of_new;
  }

  __device__ __forceinline__ const __half* Key(int position) const {
    return position < past ? past_key + position * past_stride : new_key + (position - past) * new_stride;
  }
  __device__ __forceinline__ const __half* Value(int position) const {
    return position < past ? past_value + position * past_stride : new_value + (position - past) * new_stride;
  }
  /// Elements from a position to the next, of positions that lie on the same side.
  __device__ __forceinline__ int64_t Stride(int position) const { return position < past ? past_stride : new_stride; }
};

/// What this thread block puts into the present cache: its own tokens, and of a past that lies elsewhere an equal part
/// of the positions.
struct Share {
  int past_begin, past_end, new_begin, new_end;

  __device__ __forceinline__ Share(const AttentionArgs& p, const Lengths& lengths, int64_t tile, int64_t tiles) {
    const int64_t past = p.past_key == p.present_key ? 0 : lengths.past, length = lengths.length;
    past_begin = static_cast<int>(past * tile / tiles);
    past_end = static_cast<int>(past * (tile + 1) / tiles);
    new_begin = lengths.past + static_cast<int>(tile) * kBlockQueries;
    new_end = static_cast<int>(min(min(new_begin + int64_t{kBlockQueries}, lengths.past + p.sequence), length));
  }

  __device__ __forceinline__ bool Holds(int position) const {
    return (position >= new_begin && position < new_end) || (position >= past_begin && position < past_end);
  }
  __device__ __forceinline__ bool Meets(int first, int end) const {
    return (first < new_end && end > new_begin) || (first < past_end && end > past_begin);
  }
};

/// Tiles in shared memory: keys and values, two stages. Products: how a tile lies there, and what multiplies it.
template <typename Products>
struct Tiles {
  static constexpr int kChunks = Products::kHeadDim / 8;  // of 16 bytes, in a row
  static constexpr int kThreads = kPrefillWarps * 32;
  static_assert(kTile * kChunks % kThreads == 0);
  static constexpr int kBytes = 4 * Products::kTileBytes;

  static __device__ __forceinline__ uint32_t Keys(uint32_t shared, int stage) {
    return shared + stage * 2 * Products::kTileBytes;
  }
  static __device__ __forceinline__ uint32_t Values(uint32_t shared, int stage) {
    return Keys(shared, stage) + Products::kTileBytes;
  }

  /// Starts the copy of positions first … first + 63; those from `length` on, and elements beyond the head, are zeros.
  static __device__ __forceinline__ void Load(const Source& source, int head_dim, int first, int length,
                                              uint32_t shared, int stage) {
    const uint32_t to_keys = Keys(shared, stage), to_values = Values(shared, stage);
    const bool one_side = first >= source.past || first + kTile <= source.past;
    if (head_dim == Products::kHeadDim && first + kTile <= length && one_side)
      return LoadWhole(source.Key(first), source.Value(first), source.Stride(first), to_keys, to_values);
    for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
      const int row = i / kChunks, element = i % kChunks * 8;
      const bool inside = first + row < length && element < head_dim;
      const int position = inside ? first + row : first, at = inside ? element : 0;
      CopyAsync16OrZeros(to_keys + Products::Offset(row, element), source.Key(position) + at, inside);
      CopyAsync16OrZeros(to_values + Products::Offset(row, element), source.Value(position) + at, inside);
    }
  }

  /// The same where all of it exists, on one side of the end of the past.
  static __device__ __forceinline__ void LoadWhole(const __half* keys, const __half* values, int64_t stride,
                                                   uint32_t to_keys, uint32_t to_values) {
#pragma unroll
    for (int first = 0; first < kTile * kChunks; first += kThreads) {
      const int i = first + threadIdx.x, row = i / kChunks, element = i % kChunks * 8;
      CopyAsync16(to_keys + Products::Offset(row, element), keys + row * stride + element);
      CopyAsync16(to_values + Products::Offset(row, element), values + row * stride + element);
    }
  }

  /// Writes what a share holds of a tile to the present cache, of whose elements `present` is the head's first.
  static __device__ __forceinline__ void Append(const AttentionArgs& p, const Share& share, int64_t present, int first,
                                                uint32_t shared, int stage) {
    if (!share.Meets(first, first + kTile)) return;
#pragma unroll
    for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
      const int row = i / kChunks, element = i % kChunks * 8;
      if (!share.Holds(first + row) || element >= p.head_dim) continue;
      const int64_t at = present + (first + row) * p.head_dim + element;
      const uint32_t offset = Products::Offset(row, element);
      *reinterpret_cast<uint4*>(static_cast<__half*>(p.present_key) + at) =
          ptx::LoadShared128(Keys(shared, stage) + offset);
      *reinterpret_cast<uint4*>(static_cast<__half*>(p.present_value) + at) =
          ptx::LoadShared128(Values(shared, stage) + offset);
    }
  }
};

template <typename Products>
__global__ void __launch_bounds__(kPrefillWarps * 32, Products::kHeadDim <= 96 ? 3 : 2)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  using T = Tiles<Products>;
  constexpr int kHeadDim = Products::kHeadDim;
  const AttentionArgs& p = params.args;
  LetNextStart();
  WaitForPrevious();
  const int64_t query = blockIdx.x / params.query_tiles, batch = query / p.heads, head = query - batch * p.heads;
  // The last queries see the most positions: they start first.
  const int64_t query_tile = params.query_tiles - 1 - (blockIdx.x - query * params.query_tiles);
  const int first_token = static_cast<int>(query_tile) * kBlockQueries;
  const Lengths lengths = ReadLengths(p, batch, query_tile == 0 && head == 0 && threadIdx.x == 0);
  const int end_token = static_cast<int>(min(static_cast<int64_t>(first_token + kBlockQueries), p.sequence));
  const int visible = min(lengths.past + end_token, lengths.length);
  const int tiles = (visible + kTile - 1) / kTile;

  const Rows rows(params, batch, head, first_token, lengths);
  WarpState<kHeadDim> state = {};
  state.largest[0] = state.largest[1] = -INFINITY;
  LoadQuery<kHeadDim>(p, rows, batch, head, &state);

  const Source source(p, batch, head, lengths);
  const int head_dim = static_cast<int>(p.head_dim);
  const uint32_t shared = ptx::SharedAddress(shared_bytes);
  if (tiles > 0) T::Load(source, head_dim, 0, visible, shared, 0);
  CommitCopies();
  const Share share(p, lengths, query_tile, params.query_tiles);
  const int64_t present = CacheOffset(p, batch, head, p.present_capacity);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) T::Load(source, head_dim, (tile + 1) * kTile, visible, shared, (tile + 1) % 2);
    CommitCopies();
    WaitCopies<1>();
    Products::Publish();
    __syncthreads();
    TileBias bias;
    bias.Load(rows, tile * kTile, static_cast<int>(p.total));
    float scores[kTile / 8][4];
    Products::MultiplyKeys(state, T::Keys(shared, tile % 2), scores);
    MaskScores(rows, tile * kTile, bias, scores);
    Softmax<kHeadDim>(scores, &state);
    Products::MultiplyValues(scores, T::Values(shared, tile % 2), &state);
    T::Append(p, share, present, tile * kTile, shared, tile % 2);
    __syncthreads();
  }
  StoreRows<kHeadDim>(p, rows, batch, head, state);
}

bool BiasComesInPairs(const AttentionArgs& args) {
  const int64_t strides = args.bias_batch_stride | args.bias_head_stride | args.bias_query_stride;
  return args.total % 2 == 0 && strides % 2 == 0 && IsAligned(args.bias, 4);
}

template <typename Products>
cudaError_t LaunchTiles(const AttentionArgs& args, cudaStream_t stream) {
  const PrefillParams params{args, (args.sequence + kBlockQueries - 1) / kBlockQueries, BiasComesInPairs(args)};
  LaunchShape how = Blocks(args.batch * args.heads * params.query_tiles, args.programmatic);
  how.threads = kPrefillWarps * 32;
  how.shared_bytes = Tiles<Products>::kBytes;
  // Of the current device; costs some tenths of a microsecond, so that no state of ours remembers which had it.
  const cudaError_t error = cudaFuncSetAttribute(PrefillKernel<Products>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 Tiles<Products>::kBytes);
  return error != cudaSuccess ? error : LaunchKernel(PrefillKernel<Products>, how, params, stream);
}

template <int kHeadDim>
cudaError_t LaunchBest(const AttentionArgs& args, cudaStream_t stream) {
  // Only 9.0 has wgmma.
  if (args.compute_capability == 90) return LaunchTiles<WgmmaProducts<kHeadDim>>(args, stream);
  return LaunchTiles<MmaProducts<kHeadDim>>(args, stream);
}

}  // namespace

cudaError_t LaunchPrefillAttention(const AttentionArgs& args, cudaStream_t stream) {
  // The head's elements are rounded up to what there is an instance for.
  if (args.head_dim <= 16) return LaunchTiles<MmaProducts<16>>(args, stream);
  if (args.head_dim <= 32) return LaunchTiles<MmaProducts<32>>(args, stream);
  if (args.head_dim <= 64) return LaunchBest<64>(args, stream);
  if (args.head_dim <= 80) return LaunchBest<80>(args, stream);
  if (args.head_dim <= 96) return LaunchBest<96>(args, stream);
  return LaunchBest<128>(args, stream);
}

}  // namespace flashllm::cuda::decoder
