// SparseMatMul on NVIDIA GPUs: Y[N, M] = act(X[N, K] · Wᵀ + bias) + residual, accumulated in float32. docs/kernels.md
// tells how and why.
//
// Life of a weight:  MakePlan (host arithmetic) -> the caller copies the canonical parts (docs/format.md) into device
// memory and allocates plan.staging_bytes of it -> Measure, which sets plan.layout_bytes -> the caller allocates those
// -> Convert (kernels) -> staging and parts are freed -> Launch, any number of times, from any streams at once. A
// weight that the plan calls Layout::kCanonical keeps its parts on the device instead.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "ops/sparse-matmul/format.h"

namespace flashllm::cuda {

enum class ElementType : uint8_t { kFloat32, kFloat16 };  // of X, bias, residual and Y
enum class Activation : uint8_t { kNone, kRelu };

/// What of a GPU the plan depends on.
struct DeviceInfo {
  int device = 0;
  int compute_capability = 0;  // 90 = 9.0
  int sm_count = 0;
  int shared_bytes = 0;  // a block's limit, opted in
  int clusters[3] = {};  // thread-block clusters of 1, 2 and 4 blocks that run at once, one block a multiprocessor
  int memory_gbs = 0;    // the data sheet's bandwidth, or 0 where the driver does not tell
  void* encode_tensor_map = nullptr;  // cuTensorMapEncodeTiled, where there are warpgroups
};

/// Reads the properties of one GPU, the current device, and readies the kernels on it: call it before the first Launch.
/// cudaErrorNoKernelImageForDevice where this library has no code for it (before 8.0).
cudaError_t GetDeviceInfo(int device, DeviceInfo* info);

enum class Layout : uint8_t {
  kCanonical,  // the parts as they lie in a file; plain kernel
  kColumns,    // for tensor cores: bit masks, and a column of values for each lane, in the order in which it needs them
  kJagged,     // for one or two columns of X: values and their distances, a piece of a row for each lane
};

/// How a lane reads a kColumns layout: an element at a time; or two neighbours of k, of which one may be zero: more
/// bytes, less work; or two of four k that the converter brought together, so that few of the two are zero: for teams
/// with row groups and few columns of X, by sparse products (layout.h).
enum class Columns : uint8_t { kHalves, kWords, kQuads };

/// Which warps decode a K lane of a kColumns layout: one, all rows of it; the four of a warpgroup, a fourth of the rows
/// each (sm_90a); or four with a tile of 16 rows each, where a thread block has several row blocks (sm_90a), for tens
/// of columns: two or four, 16 warps in all, or three, 24 warps.
enum class Team : uint8_t { kWarp, kWarpgroup, kRowGroup, kRowTriplet };

constexpr int kMaxBlocks = 1056;  // row blocks; of a kColumns layout two for every warpgroup of a GPU

/// How one weight is cut and laid out on one GPU. Made by MakePlan, completed by Convert; copied freely.
struct WeightPlan {
  Layout layout = Layout::kCanonical;
  ValueType value_type = ValueType::kFloat16;  // in the layout; float32 is only ever kCanonical
  int64_t out_features = 0, in_features = 0, nnz = 0;
  DeviceInfo device;
  int cluster = 1;                    // thread blocks that share a row block and cut K among themselves
  int blocks = 0;                     // row blocks; a grid has up to blocks / row_groups * cluster thread blocks
  int row_groups = 1;                 // row blocks of a thread block, where the team has row groups; else 1
  int waves = 1;                      // Columns::kQuads: thread blocks for each that runs at once
  int window_k = 0;                   // kJagged: k of a segment
  int columns_at_once = 0;            // kJagged: columns of X for which a thread block has shared memory, one or two
  std::vector<int32_t> row_start;     // kJagged: [blocks + 1] first row of each row block
  std::vector<uint16_t> tile_start;   // kColumns: [blocks + 1] first 16-row tile of each row block
  std::vector<uint16_t> panel_start;  // [blocks + 1] first panel (at most PanelTiles tiles) of each row block
  Team team = Team::kWarp;
  int lanes = 16;  // K lanes of a thread block
  Columns columns = Columns::kHalves;
  int ring_rows = 0;          // kColumns: value rows of a run in shared memory
  int window_units = 0;       // Columns::kQuads: units of 32 k among which the converter brings k together
  bool dense = false;         // expanded the weight is expected to be faster: who holds it expands it (prefill.h)
  int64_t staging_bytes = 0;  // device memory that Measure and Convert need
  int64_t layout_bytes = 0;   // device memory of the layout; set by Measure
  int64_t stream_bytes = 0;   // bytes that one multiplication streams; set by Measure
};

struct PlanOptions {
  int layout = -1;               // a Layout other than kCanonical, where the weight can have it; -1 chooses
  int expected_n = 0;            // columns of X for which the plan is to be fastest; 0: 1 to 32 alike
  int cluster = 0;               // 1, 2 or 4 where such a row block is one panel; 0 chooses
  int columns = -1;              // a Columns, or a jagged layout of no more bytes; -1 chooses
  int row_groups = 0;            // row blocks of a thread block, 2 or 4 with Team::kRowGroup, else 3; 0 chooses
  bool packed = false;           // never WeightPlan::dense; nor is that where anything but expected_n is given
  int team = -1;                 // a Team; -1 chooses, and where the GPU or the weight does not have one, the other
  bool float32_is_half = false;  // every float32 value is exact in float16 (CheckHalfExact): lay out as float16
  bool has_infinity = false;     // of bfloat16 values (CheckInfinity): not laid out
};

/// Chooses layout and partition. `weight` is validated; only its shape and `row_offsets` (host memory) are read.
cudaError_t MakePlan(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options,
                     WeightPlan* plan);

/// All of that plan but how the weight is cut, from the weight's shape, type and nnz alone. kCanonical where another
/// layout would not serve X of `type`.
WeightPlan ExpectedPlan(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options,
                        ElementType type);

/// Bytes of device memory that a weight is expected to take for X of `type` with the plan that MakePlan would make,
/// from its shape, type and nnz alone: for a decision that comes before any weight is read. LayoutBytes (cost.h) says
/// how far off that is.
double ExpectedBytes(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options,
                     ElementType type);

/// The canonical parts in device memory.
struct DeviceParts {
  const uint8_t* bitmap = nullptr;
  const int32_t* row_offsets = nullptr;
  const void* values = nullptr;
  ValueType value_type = ValueType::kFloat16;
};

/// Whether all `count` float32 values (device memory) are exact in float16. Synchronises the stream. `scratch`: 4 bytes
/// of device memory.
cudaError_t CheckHalfExact(const float* values, int64_t count, void* scratch, cudaStream_t stream, bool* exact);

/// Whether any of `count` bfloat16 values is infinite. Kernels multiply both terms of a split X by a bfloat16 weight,
/// and infinity times the one that is 0 would be NaN. `scratch` as above.
cudaError_t CheckInfinity(const uint16_t* values, int64_t count, void* scratch, cudaStream_t stream,
                          bool* has_infinity);

/// Finds how large the layout will be and completes the plan. Synchronises the stream. Not for kCanonical plans.
/// `staging`: plan->staging_bytes of device memory; Convert needs what Measure leaves there.
cudaError_t Measure(const DeviceParts& parts, void* staging, cudaStream_t stream, WeightPlan* plan);

/// Builds the layout, plan.layout_bytes of device memory aligned to 128. Enqueues its work on the stream only.
cudaError_t Convert(const WeightPlan& plan, const DeviceParts& parts, const void* staging, void* layout,
                    cudaStream_t stream);

/// One multiplication. X is [n, in_features], Y and residual [n, out_features], row-major and contiguous; bias is
/// [out_features]. All are of `type`, in device memory, aligned to an element. Y may be the residual's memory; it may
/// not overlap X.
struct MatMulArgs {
  const void* x = nullptr;
  void* y = nullptr;
  const void* bias = nullptr;      // or null
  const void* residual = nullptr;  // or null; added after the activation
  int64_t n = 0;
  ElementType type = ElementType::kFloat16;
  Activation activation = Activation::kNone;
  /// Programmatic dependent launch: weights start to flow while the previous kernel of the stream still runs.
  bool programmatic = false;
};

/// Whether a plan's layout computes with X of this type; where not, keep or make a kCanonical plan.
bool Supports(const WeightPlan& plan, ElementType type);

/// Whether Launch decodes the weight once for 128 columns, not 64 or 32: four warps, row blocks of one panel, no more
/// than 16 warps.
inline bool TakesWideColumns(const WeightPlan& plan) {
  return plan.layout == Layout::kColumns && plan.columns != Columns::kQuads && plan.team != Team::kWarp &&
         plan.team != Team::kRowTriplet && plan.panel_start[plan.blocks] == plan.blocks;
}

/// Enqueues the multiplication: one kernel (two where a plan that TakesWideColumns has up to 64 columns more than a
/// multiple of 128 and no row groups, or TakesManyColumns and up to 192 more than one of 256), no allocation, no state
/// between launches, bit-identical from run to run.
/// `layout` is Convert's output or null (kCanonical, which reads `parts`).
cudaError_t Launch(const WeightPlan& plan, const void* layout, const DeviceParts& parts, const MatMulArgs& args,
                   cudaStream_t stream);

}  // namespace flashllm::cuda
