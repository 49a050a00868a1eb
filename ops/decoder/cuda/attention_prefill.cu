// Attention of many new tokens: 64 queries of one head a thread block, 16 a warp, against tiles of 64 positions, by
// mma.m16n8k16 with an online softmax (FlashAttention-2, arXiv 2307.08691). A first kernel brings the new keys and
// values into the present cache, and the past too where that lies elsewhere; the second reads the present alone.
#include "ops/decoder/cuda/attention_kernels.h"
#include "ops/decoder/cuda/attention_lengths.cuh"
#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/tensor_core.cuh"

namespace flashllm::cuda::decoder {
namespace {

constexpr int kWarps = 4;
constexpr int kWarpQueries = 16;
constexpr int kBlockQueries = kWarps * kWarpQueries;
constexpr int kTile = 64;  // positions

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

struct PrefillParams {
  AttentionArgs args;
  int64_t query_tiles;
  bool bias_in_pairs;
};

/// One warp's 16 queries against tiles of positions. A lane holds rows lane / 4 and lane / 4 + 8 of every fragment.
template <int kHeadDim>
struct WarpState {
  static constexpr int kSteps = kHeadDim / 16;
  uint32_t query[kSteps][4];
  float output[kHeadDim / 8][4];
  float largest[2], weight[2];  // of the two rows; a lane's share of the weight
};

template <int kHeadDim>
struct Tiles {
  static constexpr int kStride = kHeadDim + 8;  // elements of a row: eight rows meet all banks once
  static constexpr int kChunks = kHeadDim / 8;  // of 16 bytes, in a row
  static_assert(kTile * kChunks % (kWarps * 32) == 0);
  static constexpr int kTileElements = kTile * kStride;
  static constexpr int kBytes = 4 * kTileElements * 2;  // keys and values, two stages

  static __device__ __forceinline__ uint32_t Keys(uint32_t shared, int stage) {
    return shared + stage * 2 * kTileElements * 2;
  }
  static __device__ __forceinline__ uint32_t Values(uint32_t shared, int stage) {
    return Keys(shared, stage) + kTileElements * 2;
  }

  /// Starts the copy of positions first … first + 63; those from `length` on, and elements beyond the head, are zeros.
  static __device__ __forceinline__ void Load(const AttentionArgs& p, int64_t cache, int first, int length,
                                              uint32_t shared, int stage) {
    const __half* const keys = static_cast<const __half*>(p.present_key) + cache + first * p.head_dim;
    const __half* const values = static_cast<const __half*>(p.present_value) + cache + first * p.head_dim;
    const uint32_t to_keys = Keys(shared, stage), to_values = Values(shared, stage);
    if (p.head_dim == kHeadDim && first + kTile <= length) return LoadWhole(keys, values, to_keys, to_values);
    for (int i = threadIdx.x; i < kTile * kChunks; i += kWarps * 32) {
      const int row = i / kChunks, element = i % kChunks * 8;
      const bool inside = first + row < length && element < p.head_dim;
      const int64_t from = inside ? row * p.head_dim + element : 0;
      CopyAsync16OrZeros(to_keys + (row * kStride + element) * 2, keys + from, inside);
      CopyAsync16OrZeros(to_values + (row * kStride + element) * 2, values + from, inside);
    }
  }

  /// The same where all of it exists: one piece of memory.
  static __device__ __forceinline__ void LoadWhole(const __half* keys, const __half* values, uint32_t to_keys,
                                                   uint32_t to_values) {
#pragma unroll
    for (int first = 0; first < kTile * kChunks; first += kWarps * 32) {
      const int i = first + threadIdx.x, row = i / kChunks, element = i % kChunks * 8;
      CopyAsync16(to_keys + (row * kStride + element) * 2, keys + i * 8);
      CopyAsync16(to_values + (row * kStride + element) * 2, values + i * 8);
    }
  }
};

/// A lane's two rows.
struct Rows {
  int token[2];           // their numbers; at and beyond the sequence: no row
  int end[2];             // they see the positions below
  const __half* bias[2];  // or null
  bool bias_in_pairs;     // every even position's bias is aligned to 4 bytes and has a neighbour
  float scale;

  __device__ __forceinline__ Rows(const PrefillParams& params, int64_t batch, int64_t head, int first_token,
                                  const Lengths& lengths)
      : bias_in_pairs(params.bias_in_pairs), scale(params.args.scale) {
    const AttentionArgs& p = params.args;
    for (int half = 0; half < 2; ++half) {
      token[half] = first_token + threadIdx.x / 32 * kWarpQueries + threadIdx.x % 32 / 4 + 8 * half;
      end[half] = token[half] < p.sequence ? min(lengths.past + token[half] + 1, lengths.length) : 0;
      const int64_t row = min(static_cast<int64_t>(token[half]), p.sequence - 1);
      bias[half] = p.bias == nullptr ? nullptr
                                     : static_cast<const __half*>(p.bias) + batch * p.bias_batch_stride +
                                           head * p.bias_head_stride + row * p.bias_query_stride;
    }
  }
};

template <int kHeadDim>
__device__ __forceinline__ void LoadQuery(const AttentionArgs& p, const Rows& rows, int64_t batch, int64_t head,
                                          WarpState<kHeadDim>* state) {
#pragma unroll
  for (int step = 0; step < WarpState<kHeadDim>::kSteps; ++step) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int token = rows.token[part % 2], element = step * 16 + part / 2 * 8 + threadIdx.x % 4 * 2;
      state->query[step][part] = 0;
      if (token >= p.sequence || element >= p.head_dim) continue;
      const int64_t at = TokenOffset(p, batch, token, head) + element;
      state->query[step][part] = *reinterpret_cast<const uint32_t*>(static_cast<const __half*>(p.query) + at);
    }
  }
}

/// scores[n] = query · keys of positions 8n … 8n + 7.
template <int kHeadDim>
__device__ __forceinline__ void MultiplyKeys(const WarpState<kHeadDim>& state, uint32_t keys,
                                             float (&scores)[kTile / 8][4]) {
  const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, column = lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < WarpState<kHeadDim>::kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kTile / 16; ++n) {
      uint32_t b[4];
      LoadMatrices(b, keys + ((n * 16 + row) * Tiles<kHeadDim>::kStride + step * 16 + column) * 2);
      ptx::Mma<false>(scores[2 * n], state.query[step], b[0], b[1]);
      ptx::Mma<false>(scores[2 * n + 1], state.query[step], b[2], b[3]);
    }
  }
}

/// The bias of a warp's 16 queries at a tile's positions, two neighbours a word, as a lane's accumulators lie. Loaded
/// before the scores are computed, so that they hide the wait, and without a branch, so that no load waits for another:
/// beyond the end it is the last position's, which the mask hides.
struct TileBias {
  uint32_t pairs[kTile / 8][2] = {};

  __device__ __forceinline__ void Load(const Rows& rows, int first, int total) {
    if (rows.bias[0] == nullptr) return;
    first += threadIdx.x % 4 * 2;
    if (rows.bias_in_pairs)
      LoadPairs(rows, first, total - 2);
    else
      LoadEach(rows, first, total - 1);
  }

  __device__ __forceinline__ void LoadPairs(const Rows& rows, int first, int last) {
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        pairs[n][half] = *reinterpret_cast<const uint32_t*>(rows.bias[half] + min(first + n * 8, last));
    }
  }

  __device__ __forceinline__ void LoadEach(const Rows& rows, int first, int last) {
    uint16_t low[kTile / 8][2], high[kTile / 8][2];
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto* const bits = reinterpret_cast<const uint16_t*>(rows.bias[half]);
        low[n][half] = bits[min(first + n * 8, last)];
        high[n][half] = bits[min(first + n * 8 + 1, last)];
      }
    }
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) pairs[n][half] = low[n][half] | static_cast<uint32_t>(high[n][half]) << 16;
    }
  }

  __device__ __forceinline__ float at(int n, int i) const {
    const __half2 pair = *reinterpret_cast<const __half2*>(&pairs[n][i / 2]);
    return i % 2 == 0 ? __low2float(pair) : __high2float(pair);
  }
};

/// Scaled, with the bias; -∞ where a query does not see a position.
__device__ __forceinline__ void MaskScores(const Rows& rows, int first, const TileBias& bias,
                                           float (&scores)[kTile / 8][4]) {
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = fmaf(scores[n][i], rows.scale, bias.at(n, i));
  }
  if (first + kTile <= rows.end[0] && first + kTile <= rows.end[1]) return;
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2 >= rows.end[i / 2]) scores[n][i] = -INFINITY;
    }
  }
}

/// Turns scores into weights relative to the largest so far, and what was summed before with it.
template <int kHeadDim>
__device__ __forceinline__ void Softmax(float (&scores)[kTile / 8][4], WarpState<kHeadDim>* state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = state->largest[half];
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float before = state->largest[half];
    const float rescale = before == -INFINITY ? 0.0f : Exp2((before - largest) * kLog2E);
    const float base = largest == -INFINITY ? 0.0f : largest * kLog2E;
    state->largest[half] = largest;
    float weight = state->weight[half] * rescale;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = Exp2(fmaf(scores[n][i], kLog2E, -base));
        weight += scores[n][i];
      }
    }
    state->weight[half] = weight;
    if (__all_sync(0xffffffffu, before == largest)) continue;  // as soon as the largest has been met
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      state->output[n][2 * half] *= rescale;
      state->output[n][2 * half + 1] *= rescale;
    }
  }
}

/// output += weights · values; the weights' accumulators are a left operand's fragments as they lie.
template <int kHeadDim>
__device__ __forceinline__ void MultiplyValues(const float (&weights)[kTile / 8][4], uint32_t values,
                                               WarpState<kHeadDim>* state) {
  const int lane = threadIdx.x % 32, row = lane / 8 % 2 * 8 + lane % 8, column = lane / 16 * 8;
#pragma unroll
  for (int step = 0; step < kTile / 16; ++step) {
    const float (&left)[4] = weights[2 * step];
    const float (&right)[4] = weights[2 * step + 1];
    const uint32_t a[4] = {PackHalves(left[0], left[1]), PackHalves(left[2], left[3]), PackHalves(right[0], right[1]),
                           PackHalves(right[2], right[3])};
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      uint32_t b[4];
      LoadMatricesTransposed(b, values + ((step * 16 + row) * Tiles<kHeadDim>::kStride + n * 16 + column) * 2);
      ptx::Mma<false>(state->output[2 * n], a, b[0], b[1]);
      ptx::Mma<false>(state->output[2 * n + 1], a, b[2], b[3]);
    }
  }
}

template <int kHeadDim>
__device__ __forceinline__ void StoreRows(const AttentionArgs& p, const Rows& rows, int64_t batch, int64_t head,
                                          const WarpState<kHeadDim>& state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float weight = state.weight[half];
    weight += __shfl_xor_sync(0xffffffffu, weight, 1);
    weight += __shfl_xor_sync(0xffffffffu, weight, 2);
    if (rows.token[half] >= p.sequence) continue;
    const float inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
    const int64_t at = ((batch * p.sequence + rows.token[half]) * p.heads + head) * p.head_dim;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      if (n * 8 >= p.head_dim) continue;
      const uint32_t pair = PackHalves(state.output[n][2 * half] * inverse, state.output[n][2 * half + 1] * inverse);
      *reinterpret_cast<uint32_t*>(static_cast<__half*>(p.output) + at + n * 8 + threadIdx.x % 4 * 2) = pair;
    }
  }
}

/// kHeadDim: the head's elements rounded up to what there is an instance for.
template <int kHeadDim>
__global__ void __launch_bounds__(kWarps * 32) PrefillKernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ __align__(16) uint8_t shared_bytes[];
  using T = Tiles<kHeadDim>;
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
    __syncthreads();
    TileBias bias;
    bias.Load(rows, tile * kTile, static_cast<int>(p.total));
    float scores[kTile / 8][4];
    MultiplyKeys<kHeadDim>(state, T::Keys(shared, tile % 2), scores);
    MaskScores(rows, tile * kTile, bias, scores);
    Softmax<kHeadDim>(scores, &state);
    MultiplyValues<kHeadDim>(scores, T::Values(shared, tile % 2), &state);
    __syncthreads();
  }
  StoreRows<kHeadDim>(p, rows, batch, head, state);
}

bool BiasComesInPairs(const AttentionArgs& args) {
  const int64_t strides = args.bias_batch_stride | args.bias_head_stride | args.bias_query_stride;
  return args.total % 2 == 0 && strides % 2 == 0 && IsAligned(args.bias, 4);
}

template <int kHeadDim>
cudaError_t LaunchTiles(const AttentionArgs& args, cudaStream_t stream) {
  const PrefillParams params{args, (args.sequence + kBlockQueries - 1) / kBlockQueries, BiasComesInPairs(args)};
  LaunchConfig how;
  how.blocks = args.batch * args.heads * params.query_tiles;
  how.threads = kWarps * 32;
  how.shared_bytes = Tiles<kHeadDim>::kBytes;
  how.programmatic = args.programmatic;
  // Of the current device; costs some tenths of a microsecond, so that no state of ours remembers which had it.
  const cudaError_t error = cudaFuncSetAttribute(PrefillKernel<kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 Tiles<kHeadDim>::kBytes);
  return error != cudaSuccess ? error : Launch(PrefillKernel<kHeadDim>, params, how, stream);
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
  if (args.head_dim <= 16) return LaunchTiles<16>(args, stream);
  if (args.head_dim <= 32) return LaunchTiles<32>(args, stream);
  if (args.head_dim <= 64) return LaunchTiles<64>(args, stream);
  if (args.head_dim <= 80) return LaunchTiles<80>(args, stream);
  if (args.head_dim <= 96) return LaunchTiles<96>(args, stream);
  return LaunchTiles<128>(args, stream);
}

}  // namespace flashllm::cuda::decoder
