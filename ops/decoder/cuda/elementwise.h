// Elementwise arithmetic with ONNX's (NumPy's) broadcasting. float16 is computed in float32 and rounded once.
#pragma once

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda {

/// The shape of two tensors broadcast against each other. False where they do not fit or have more than kMaxRank axes.
bool Broadcast(const Shape& a, const Shape& b, Shape* result);

enum class BinaryOp : uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,  // of integers: rounds toward zero
  kMin,
  kMax,
  kPow,             // floats only
  kEqual,           // from here on the result is bool
  kLess,            //
  kLessOrEqual,     //
  kGreater,         //
  kGreaterOrEqual,  //
  kAnd,             // bool only, as the next two
  kOr,              //
  kXor,             //
};

/// The type of a binary operation's result.
constexpr DataType ResultType(BinaryOp op, DataType type) { return op >= BinaryOp::kEqual ? DataType::kBool : type; }

/// Whether an operation is implemented for operands of a type: arithmetic and comparison for everything but bool (which
/// has kEqual), kAnd … kXor for bool.
bool Supports(BinaryOp op, DataType type);

/// y = a op b.
struct BinaryArgs {
  BinaryOp op = BinaryOp::kAdd;
  const void *a = nullptr, *b = nullptr;
  void* y = nullptr;  // of Broadcast's shape; may be a or b where that has y's shape and type
  Shape a_shape, b_shape;
  DataType type = DataType::kFloat16;  // of a and b
  uint32_t* fault = nullptr;           // kFaultDivide
  bool programmatic = false;
};

/// cudaErrorInvalidValue where the shapes do not broadcast or Supports says no.
cudaError_t LaunchBinary(const BinaryArgs& args, cudaStream_t stream);

enum class UnaryOp : uint8_t {
  kRelu,  // NaN stays NaN
  kGelu,  // x/2 (1 + erf(x/√2)); floats only
  kNeg,
  kAbs,
  kSqrt,  // floats only, as the next two
  kExp,   //
  kTanh,  //
  kNot,   // bool only
};

bool Supports(UnaryOp op, DataType type);

/// y = op x, of the same type.
struct UnaryArgs {
  UnaryOp op = UnaryOp::kRelu;
  const void* x = nullptr;
  void* y = nullptr;  // may be x
  int64_t count = 0;
  DataType type = DataType::kFloat16;
  bool programmatic = false;
};

cudaError_t LaunchUnary(const UnaryArgs& args, cudaStream_t stream);

/// y = x in another type: float to float rounds to nearest even, float to integer rounds toward zero and saturates (NaN
/// is 0), anything to bool is x != 0 (NaN is true), int64 to int32 keeps the low 32 bits.
struct CastArgs {
  const void* x = nullptr;
  void* y = nullptr;
  int64_t count = 0;
  DataType from = DataType::kFloat32, to = DataType::kFloat16;
  bool programmatic = false;
};

cudaError_t LaunchCast(const CastArgs& args, cudaStream_t stream);

/// y = condition ? a : b, all three broadcast.
struct WhereArgs {
  const void* condition = nullptr;  // bool
  const void *a = nullptr, *b = nullptr;
  void* y = nullptr;
  Shape condition_shape, a_shape, b_shape;
  DataType type = DataType::kFloat16;  // of a, b and y
  bool programmatic = false;
};

cudaError_t LaunchWhere(const WhereArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
