// Everything that only moves elements: Expand, Transpose, Slice, Split, Concat; and what moves nothing, as Reshape
// does, where its output must not share its input's memory: an Expand to the same shape.
#pragma once

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda {

/// to[to_offset + i · to_strides] = from[from_offset + i · from_strides] for every index i of `shape`. Offsets and
/// strides are in elements; strides of `from` may be 0 or negative.
struct StridedCopyArgs {
  const void* from = nullptr;
  void* to = nullptr;
  Shape shape;
  int64_t from_offset = 0, to_offset = 0;
  int64_t from_strides[kMaxRank] = {}, to_strides[kMaxRank] = {};
  int64_t element_bytes = 2;  // 1, 2, 4 or 8
  bool programmatic = false;
};

cudaError_t LaunchStridedCopy(const StridedCopyArgs& args, cudaStream_t stream);

// Each of these sets shape, offsets and strides of a copy. They return false, and leave the copy as it was, where the
// arguments do not fit together.

/// to[to_shape] = from broadcast. `to_shape` must be what ONNX's Expand gives: Broadcast(from_shape, wanted).
bool DescribeExpand(const Shape& from_shape, const Shape& to_shape, StridedCopyArgs* copy);

/// to's axis i is from's axis permutation[i].
bool DescribeTranspose(const Shape& from_shape, const int* permutation, StridedCopyArgs* copy);

/// counts[i] elements of every axis i from starts[i] on, steps[i] apart (negative: backwards). Starts are clamped and
/// counted as ONNX's Slice says before this: 0 <= start < dim. Split is a Slice for each output.
bool DescribeSlice(const Shape& from_shape, const int64_t* starts, const int64_t* steps, const int64_t* counts,
                   StridedCopyArgs* copy);

/// The whole of `from` into to's axis at `position`: one copy for each of Concat's inputs.
bool DescribeConcat(const Shape& from_shape, const Shape& to_shape, int axis, int64_t position, StridedCopyArgs* copy);

}  // namespace flashllm::cuda
