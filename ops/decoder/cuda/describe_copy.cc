#include "ops/decoder/cuda/strided_copy.h"

namespace flashllm::cuda {
namespace {

bool IsValid(const Shape& shape) {
  if (shape.rank < 0 || shape.rank > kMaxRank) return false;
  for (int i = 0; i < shape.rank; ++i) {
    if (shape.dims[i] < 0) return false;
  }
  return true;
}

void ContiguousStrides(const Shape& shape, int64_t* strides) {
  int64_t stride = 1;
  for (int i = shape.rank - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= shape.dims[i];
  }
}

/// The copy's shape and the strides of a contiguous result; `from` is for the caller to set.
StridedCopyArgs Into(const StridedCopyArgs& copy, const Shape& to_shape) {
  StridedCopyArgs result = copy;
  result.shape = to_shape;
  result.from_offset = result.to_offset = 0;
  ContiguousStrides(to_shape, result.to_strides);
  return result;
}

}  // namespace

bool DescribeExpand(const Shape& from_shape, const Shape& to_shape, StridedCopyArgs* copy) {
  if (!IsValid(from_shape) || !IsValid(to_shape) || from_shape.rank > to_shape.rank) return false;
  StridedCopyArgs result = Into(*copy, to_shape);
  int64_t strides[kMaxRank];
  ContiguousStrides(from_shape, strides);
  for (int axis = 0; axis < to_shape.rank; ++axis) {
    const int own = axis - (to_shape.rank - from_shape.rank);
    const int64_t dim = own >= 0 ? from_shape.dims[own] : 1;
    if (dim != 1 && dim != to_shape.dims[axis]) return false;
    result.from_strides[axis] = dim == 1 ? 0 : strides[own];
  }
  *copy = result;
  return true;
}

bool DescribeTranspose(const Shape& from_shape, const int* permutation, StridedCopyArgs* copy) {
  if (!IsValid(from_shape)) return false;
  Shape to_shape;
  to_shape.rank = from_shape.rank;
  bool used[kMaxRank] = {};
  for (int axis = 0; axis < from_shape.rank; ++axis) {
    const int from = permutation[axis];
    if (from < 0 || from >= from_shape.rank || used[from]) return false;
    used[from] = true;
    to_shape.dims[axis] = from_shape.dims[from];
  }
  StridedCopyArgs result = Into(*copy, to_shape);
  int64_t strides[kMaxRank];
  ContiguousStrides(from_shape, strides);
  for (int axis = 0; axis < from_shape.rank; ++axis) result.from_strides[axis] = strides[permutation[axis]];
  *copy = result;
  return true;
}

bool DescribeSlice(const Shape& from_shape, const int64_t* starts, const int64_t* steps, const int64_t* counts,
                   StridedCopyArgs* copy) {
  if (!IsValid(from_shape)) return false;
  Shape to_shape;
  to_shape.rank = from_shape.rank;
  for (int axis = 0; axis < from_shape.rank; ++axis) {
    if (counts[axis] < 0) return false;
    to_shape.dims[axis] = counts[axis];
  }
  StridedCopyArgs result = Into(*copy, to_shape);
  int64_t strides[kMaxRank];
  ContiguousStrides(from_shape, strides);
  for (int axis = 0; axis < from_shape.rank; ++axis) {
    const int64_t dim = from_shape.dims[axis], count = counts[axis], start = starts[axis], step = steps[axis];
    if (count == 0) continue;
    if (start < 0 || start >= dim) return false;
    // The last element, start + (count - 1) * step, must be inside; the product could overflow.
    const int64_t room = step > 0 ? dim - 1 - start : start, size = step > 0 ? step : -step;
    if (count > 1 && (size <= 0 || count - 1 > room / size)) return false;
    result.from_offset += start * strides[axis];
    result.from_strides[axis] = count > 1 ? step * strides[axis] : 0;
  }
  *copy = result;
  return true;
}

bool DescribeConcat(const Shape& from_shape, const Shape& to_shape, int axis, int64_t position, StridedCopyArgs* copy) {
  if (!IsValid(from_shape) || !IsValid(to_shape) || from_shape.rank != to_shape.rank) return false;
  if (axis < 0 || axis >= to_shape.rank || position < 0) return false;
  for (int i = 0; i < to_shape.rank; ++i) {
    const int64_t room = to_shape.dims[i] - (i == axis ? position : 0);
    if (i == axis ? from_shape.dims[i] > room : from_shape.dims[i] != room) return false;
  }
  StridedCopyArgs result = Into(*copy, to_shape);
  result.shape = from_shape;
  result.to_offset = position * result.to_strides[axis];
  ContiguousStrides(from_shape, result.from_strides);
  *copy = result;
  return true;
}

}  // namespace flashllm::cuda
