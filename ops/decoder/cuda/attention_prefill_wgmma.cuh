// The prefill kernel's two products by wgmma, of sm_90a: queries and weights come from registers, whose fragments are
// those of mma.m16n8k16, keys and values from shared memory in the layout with the 128-byte swizzle.
#pragma once

#include "ops/decoder/cuda/attention_prefill_rows.cuh"
#include "ops/decoder/cuda/wgmma.cuh"

namespace flashllm::cuda::decoder {

/// A tile is cut into panels of 64 elements: 64 positions of 128 bytes, the 16-byte pieces of each exchanged by its
/// number modulo 8.
template <int kHeadDimension>
struct WgmmaProducts {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kPanelElements = 64;
  static constexpr int kPanelBytes = kTile * kPanelElements * 2;
  static constexpr int kPanels = (kHeadDim + kPanelElements - 1) / kPanelElements;
  static constexpr int kTileBytes = kPanels * kPanelBytes;

  static __device__ __forceinline__ uint32_t Offset(int row, int element) {
    const int piece = element % kPanelElements / 8;
    return element / kPanelElements * kPanelBytes + row * 128 + (piece ^ row % 8) * 16;
  }

  static __device__ __forceinline__ void Publish() { FenceAsyncProxy(); }

  /// scores[n] = query · keys of positions 8n … 8n + 7. A step of 16 elements is 32 bytes further in the panel's rows.
  static __device__ __forceinline__ void MultiplyKeys(const WarpState<kHeadDim>& state, uint32_t keys,
                                                      float (&scores)[kTile / 8][4]) {
    BeginProducts();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step)
      Wgmma<kTile, false>(&scores[0], state.query[step], Describe(keys + step / 4 * kPanelBytes + step % 4 * 32),
                          step > 0);
    EndProducts();
    KeepInOrder(scores);
  }

  /// output += weights · values; a step of 16 positions is 16 rows further.
  static __device__ __forceinline__ void MultiplyValues(const float (&weights)[kTile / 8][4], uint32_t values,
                                                        WarpState<kHeadDim>* state) {
    uint32_t a[kTile / 16][4];
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float (&of)[4] = weights[2 * step + part / 2];
        a[step][part] = PackHalves(of[part % 2 * 2], of[part % 2 * 2 + 1]);
      }
    }
    KeepInOrder(state->output);
    BeginProducts();
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      const uint32_t rows = values + step * 16 * 128;
#pragma unroll
      for (int panel = 0; panel < kHeadDim / kPanelElements; ++panel)
        Wgmma<kPanelElements, true>(&state->output[8 * panel], a[step], Describe(rows + panel * kPanelBytes), true);
      if constexpr (kHeadDim % kPanelElements != 0) {
        constexpr int kWhole = kHeadDim / kPanelElements;
        Wgmma<kHeadDim % kPanelElements, true>(&state->output[8 * kWhole], a[step],
                                               Describe(rows + kWhole * kPanelBytes), true);
      }
    }
    EndProducts();
    KeepInOrder(state->output);
  }
};

}  // namespace flashllm::cuda::decoder
