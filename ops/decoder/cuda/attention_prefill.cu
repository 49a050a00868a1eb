// Attention of many new tokens: 64 queries of one head a thread block, 16 a warp, against tiles of 64 positions on
// Tensor Cores, with an online softmax (FlashAttention-2, arXiv 2307.08691). A first kernel brings the new keys and
// values into the present cache, and the past too where that lies elsewhere; the second reads the present alone.
#include "ops/decoder/cuda/attention_kernels.h"
#include "ops/decoder/cuda/attention_prefill_mma.cuh"
#include "ops/decoder/cuda/attention_prefill_wgmma.cuh"
#include "ops/decoder/cuda/element.cuh"

namespace flashllm::cuda::decoder {
namespace {

struct AppendParams {
  AttentionArgs args;
  int64_t rows;  // of each head: new tokens, then positions of the past to copy
};

__global__ void __launch_bounds__(kThreads) AppendKernel(const __grid_constant__ AppendParams params) {
  const AttentionArgs& p = params.args;
  LetNextStart();
  WaitForPrevious();
  const int64_t chunks = p.head_dim / 8, items = p.batch * p.heads * params.rows * chunks;
  for (int64_t item = FirstItem(); item < items; item += ItemStride()) {
    const int64_t line = item / chunks, element = (item - line * chunks) * 8;
    const int64_t cache = line / params.rows, row = line - cache * params.rows;
    const int64_t batch = cache / p.heads, head = cache - batch * p.heads;
    const Lengths lengths = ReadLengths(p, batch, row == 0 && head == 0 && element == 0);
    const bool is_new = row < p.sequence;
    const int64_t position = is_new ? lengths.past + row : row - p.sequence;
    if (position >= (is_new ? lengths.length : lengths.past)) continue;
    const int64_t from = is_new ? TokenOffset(p, batch, row, head)
                                : CacheOffset(p, batch, head, p.past_capacity) + position * p.head_dim;
    const int64_t to = CacheOffset(p, batch, head, p.present_capacity) + position * p.head_dim + element;
    const auto copy = [&](const void* source, void* destination) {
      *reinterpret_cast<uint4*>(static_cast<__half*>(destination) + to) =
          *reinterpret_cast<const uint4*>(static_cast<const __half*>(source) + from + element);
    };
    copy(is_new ? p.key : p.past_key, p.present_key);
    copy(is_new ? p.value : p.past_value, p.present_value);
  }
}

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
  static __device__ __forceinline__ void Load(const AttentionArgs& p, int64_t cache, int first, int length,
                                              uint32_t shared, int stage) {
    const __half* const keys = static_cast<const __half*>(p.present_key) + cache + first * p.head_dim;
    const __half* const values = static_cast<const __half*>(p.present_value) + cache + first * p.head_dim;
    const uint32_t to_keys = Keys(shared, stage), to_values = Values(shared, stage);
    if (p.head_dim == Products::kHeadDim && first + kTile <= length) return LoadWhole(keys, values, to_keys, to_values);
    for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
      const int row = i / kChunks, element = i % kChunks * 8;
      const bool inside = first + row < length && element < p.head_dim;
      const int64_t from = inside ? row * p.head_dim + element : 0;
      CopyAsync16OrZeros(to_keys + Products::Offset(row, element), keys + from, inside);
      CopyAsync16OrZeros(to_values + Products::Offset(row, element), values + from, inside);
    }
  }

  /// The same where all of it exists: one piece of memory.
  static __device__ __forceinline__ void LoadWhole(const __half* keys, const __half* values, uint32_t to_keys,
                                                   uint32_t to_values) {
#pragma unroll
    for (int first = 0; first < kTile * kChunks; first += kThreads) {
      const int i = first + threadIdx.x, row = i / kChunks, element = i % kChunks * 8;
      CopyAsync16(to_keys + Products::Offset(row, element), keys + i * 8);
      CopyAsync16(to_values + Products::Offset(row, element), values + i * 8);
    }
  }
};

template <typename Products>
__global__ void __launch_bounds__(kPrefillWarps * 32) PrefillKernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  using T = Tiles<Products>;
  constexpr int kHeadDim = Products::kHeadDim;
  const AttentionArgs& p = params.args;
  LetNextStart();
  WaitForPrevious();
  const int64_t query = blockIdx.x / params.query_tiles, batch = query / p.heads, head = query - batch * p.heads;
  // The last queries see the most positions: they start first.
  const int first_token =
      static_cast<int>(params.query_tiles - 1 - (blockIdx.x - query * params.query_tiles)) * kBlockQueries;
  const Lengths lengths = ReadLengths(p, batch, false);
  const int end_token = static_cast<int>(min(static_cast<int64_t>(first_token + kBlockQueries), p.sequence));
  const int visible = min(lengths.past + end_token, lengths.length);
  const int tiles = (visible + kTile - 1) / kTile;

  const Rows rows(params, batch, head, first_token, lengths);
  WarpState<kHeadDim> state = {};
  state.largest[0] = state.largest[1] = -INFINITY;
  LoadQuery<kHeadDim>(p, rows, batch, head, &state);

  const int64_t cache = CacheOffset(p, batch, head, p.present_capacity);
  const uint32_t shared = ptx::SharedAddress(shared_bytes);
  if (tiles > 0) T::Load(p, cache, 0, visible, shared, 0);
  CommitCopies();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) T::Load(p, cache, (tile + 1) * kTile, visible, shared, (tile + 1) % 2);
    CommitCopies();
    WaitForCopies<1>();
    Products::Publish();
    __syncthreads();
    TileBias bias;
    bias.Load(rows, tile * kTile, static_cast<int>(p.total));
    float scores[kTile / 8][4];
    Products::MultiplyKeys(state, T::Keys(shared, tile % 2), scores);
    MaskScores(rows, tile * kTile, bias, scores);
    Softmax<kHeadDim>(scores, &state);
    Products::MultiplyValues(scores, T::Values(shared, tile % 2), &state);
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
  LaunchConfig how;
  how.blocks = args.batch * args.heads * params.query_tiles;
  how.threads = kPrefillWarps * 32;
  how.shared_bytes = Tiles<Products>::kBytes;
  how.programmatic = args.programmatic;
  // Of the current device; costs some tenths of a microsecond, so that no state of ours remembers which had it.
  const cudaError_t error = cudaFuncSetAttribute(PrefillKernel<Products>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 Tiles<Products>::kBytes);
  return error != cudaSuccess ? error : Launch(PrefillKernel<Products>, params, how, stream);
}

template <int kHeadDim>
cudaError_t LaunchBest(const AttentionArgs& args, cudaStream_t stream) {
  // Only 9.0 has wgmma.
  if (args.compute_capability == 90) return LaunchTiles<WgmmaProducts<kHeadDim>>(args, stream);
  return LaunchTiles<MmaProducts<kHeadDim>>(args, stream);
}

cudaError_t Append(const AttentionArgs& args, cudaStream_t stream) {
  const bool copies_past = HasSeparatePast(args) && args.total != args.sequence;
  const AppendParams params{args, args.sequence + (copies_past ? std::min(args.past_capacity, args.total) : 0)};
  const int64_t items = args.batch * args.heads * params.rows * (args.head_dim / 8);
  return Launch(AppendKernel, params, GridFor(items, args.programmatic), stream);
}

}  // namespace

cudaError_t LaunchPrefillAttention(const AttentionArgs& args, cudaStream_t stream) {
  const cudaError_t error = Append(args, stream);
  if (error != cudaSuccess) return error;
  // The head's elements are rounded up to what there is an instance for.
  if (args.head_dim <= 16) return LaunchTiles<MmaProducts<16>>(args, stream);
  if (args.head_dim <= 32) return LaunchTiles<MmaProducts<32>>(args, stream);
  if (args.head_dim <= 64) return LaunchBest<64>(args, stream);
  if (args.head_dim <= 80) return LaunchBest<80>(args, stream);
  if (args.head_dim <= 96) return LaunchBest<96>(args, stream);
  return LaunchBest<128>(args, stream);
}

}  // namespace flashllm::cuda::decoder
