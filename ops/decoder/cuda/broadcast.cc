#include "ops/decoder/cuda/elementwise.h"

namespace flashllm::cuda {

bool Broadcast(const Shape& a, const Shape& b, Shape* result) {
  Shape shape;
  shape.rank = a.rank > b.rank ? a.rank : b.rank;
  if (shape.rank > kMaxRank || a.rank < 0 || b.rank < 0) return false;
  for (int i = 1; i <= shape.rank; ++i) {
    const int64_t of_a = i <= a.rank ? a.dims[a.rank - i] : 1, of_b = i <= b.rank ? b.dims[b.rank - i] : 1;
    if (of_a != of_b && of_a != 1 && of_b != 1) return false;
    shape.dims[shape.rank - i] = of_a == 1 ? of_b : of_a;
  }
  *result = shape;
  return true;
}

bool Supports(BinaryOp op, DataType type) {
  switch (op) {
    case BinaryOp::kAnd:
    case BinaryOp::kOr:
    case BinaryOp::kXor:
      return type == DataType::kBool;
    case BinaryOp::kEqual:
      return true;
    case BinaryOp::kPow:
      return type == DataType::kFloat32 || type == DataType::kFloat16;
    default:
      return type != DataType::kBool;
  }
}

bool Supports(UnaryOp op, DataType type) {
  switch (op) {
    case UnaryOp::kNot:
      return type == DataType::kBool;
    case UnaryOp::kRelu:
    case UnaryOp::kNeg:
    case UnaryOp::kAbs:
      return type != DataType::kBool;
    default:
      return type == DataType::kFloat32 || type == DataType::kFloat16;
  }
}

}  // namespace flashllm::cuda
