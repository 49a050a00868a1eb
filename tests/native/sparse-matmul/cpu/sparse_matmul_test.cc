// Every instruction set against float64, element by element.
//
// The bound is that of float32 summation in any order: |error| ≤ γ(n) · Σ|terms|, γ(n) = n·u / (1 - n·u), u = 2⁻²⁴,
// where n counts the roundings a term may go through: one for each stored weight of the row (a fused multiply-add
// rounds once), a few for partial sums that are added at the end, one each for bias and residual. A float16 result is
// rounded once more.
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/cpu/sparse_matmul.h"
#include "ops/sparse-matmul/float_bits.h"
#include "tests/native/sparse-matmul/random_weights.h"

using namespace flashllm;
using namespace flashllm::cpu;
using namespace flashllm::test;

namespace {

constexpr double kUnit = 1.0 / (1 << 24);
// Partial sums: up to 16 lanes of 4 accumulators are added pairwise, in at most 6 levels; blocks of k add theirs one by
// one.
constexpr double kExtraRoundings = 8;

// Threads that take turns in no fixed order.
ParallelFor RunOn(int threads) {
  return [threads](int64_t count, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      for (int64_t i = next++; i < count; i = next++) body(i);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& thread : others) thread.join();
  };
}

// A tensor of X's type, in an allocation of exactly its size.
class Tensor {
 public:
  Tensor(const std::vector<float>& values, ElementType type) : Tensor(values.size(), type) {
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half = FloatToHalf(values[i]);
      if (type_ == ElementType::kFloat16) {
        std::memcpy(bytes_.get() + 2 * i, &half, 2);
      } else {
        std::memcpy(bytes_.get() + 4 * i, &values[i], 4);
      }
    }
  }
  // Filled with NaN.
  Tensor(size_t size, ElementType type)
      : type_(type), size_(size), bytes_(new uint8_t[size * (type == ElementType::kFloat16 ? 2 : 4)]) {
    std::memset(bytes_.get(), 0xFF, size * (type == ElementType::kFloat16 ? 2 : 4));
  }
  float At(size_t i) const {
    if (type_ == ElementType::kFloat16) {
      uint16_t half;
      std::memcpy(&half, bytes_.get() + 2 * i, 2);
      return HalfToFloat(half);
    }
    float value;
    std::memcpy(&value, bytes_.get() + 4 * i, 4);
    return value;
  }
  void* data() const { return bytes_.get(); }
  bool SameBytes(const Tensor& other) const {
    return std::memcmp(data(), other.data(), size_ * (type_ == ElementType::kFloat16 ? 2 : 4)) == 0;
  }

 private:
  ElementType type_;
  size_t size_;
  std::unique_ptr<uint8_t[]> bytes_;
};

struct Case {
  int64_t rows, columns, n;
  double sparsity;
  Pattern pattern = Pattern::kUniform;
  ValueType value_type = ValueType::kFloat16;
  ElementType type = ElementType::kFloat32;
  bool bias = false, relu = false, residual = false;
};

// The operands of a case, and what they should give.
class Problem {
 public:
  explicit Problem(const Case& c)
      : case_(c),
        dense_(RandomDense(c.rows, c.columns, c.sparsity, c.pattern, 17)),
        weight_(PackDense(dense_, c.rows, c.columns, c.value_type)),
        x_(RandomFloats(static_cast<size_t>(c.n * c.columns), 18), c.type),
        bias_(RandomFloats(static_cast<size_t>(c.rows), 19), c.type),
        residual_(RandomFloats(static_cast<size_t>(c.n * c.rows), 20), c.type) {
    REQUIRE(Validate(ClaimOf(weight_), true, &view_) == "");
  }

  const PackedWeight& view() const { return view_; }

  Tensor Run(Isa isa, int threads) const {
    const std::unique_ptr<SparseMatMul> op = MakeSparseMatMul(view_, isa);
    Tensor y(static_cast<size_t>(case_.n * case_.rows), case_.type);
    MatMulArgs args;
    args.x = x_.data();
    args.y = y.data();
    args.bias = case_.bias ? bias_.data() : nullptr;
    args.residual = case_.residual ? residual_.data() : nullptr;
    args.n = case_.n;
    args.type = case_.type;
    args.activation = case_.relu ? Activation::kRelu : Activation::kNone;
    op->Run(args, threads, RunOn(threads));
    return y;
  }

  // Compares each element of y with float64. The first that is off is reported.
  void Check(const Tensor& y) const {
    for (int64_t n = 0; n < case_.n; ++n) {
      for (int64_t m = 0; m < case_.rows; ++m) {
        double sum = 0, magnitude = 0, stored = 0;
        for (int64_t k = 0; k < case_.columns; ++k) {
          const double weight = dense_[static_cast<size_t>(m * case_.columns + k)];
          if (weight == 0) continue;
          const double term = weight * x_.At(static_cast<size_t>(n * case_.columns + k));
          sum += term;
          magnitude += std::abs(term);
          stored += 1;
        }
        const size_t at = static_cast<size_t>(n * case_.rows + m);
        if (case_.bias) Add(bias_.At(static_cast<size_t>(m)), &sum, &magnitude);
        if (case_.relu) sum = std::max(sum, 0.0);
        if (case_.residual) Add(residual_.At(at), &sum, &magnitude);
        const double roundings = (stored + kExtraRoundings + case_.bias + case_.residual) * kUnit;
        double bound = roundings / (1 - roundings) * magnitude;
        // Half a unit in the last place of a float16: 2⁻¹¹ relative, 2⁻²⁵ where it is subnormal.
        if (case_.type == ElementType::kFloat16)
          bound += std::max((std::abs(sum) + bound) / 2048, std::ldexp(1.0, -25));
        const double found = y.At(at);
        if (!(std::abs(found - sum) <= bound)) {
          FAIL("Y[" << n << ", " << m << "] is " << found << ", expected " << sum << " within " << bound);
        }
      }
    }
  }

 private:
  static void Add(double value, double* sum, double* magnitude) {
    *sum += value;
    *magnitude += std::abs(value);
  }

  const Case case_;
  const std::vector<float> dense_;
  const OwnedPackedWeight weight_;
  const Tensor x_, bias_, residual_;
  PackedWeight view_;
};

void CheckEverywhere(const Case& c) {
  CAPTURE(c.rows);
  CAPTURE(c.columns);
  CAPTURE(c.n);
  CAPTURE(c.sparsity);
  CAPTURE(NameOf(c.pattern));
  const Problem problem(c);
  for (Isa isa : SupportedIsas()) {
    CAPTURE(IsaName(isa));
    const Tensor y = problem.Run(isa, 1);
    problem.Check(y);
    CHECK(y.SameBytes(problem.Run(isa, 3)));
  }
}

const ValueType kValueTypes[] = {ValueType::kFloat16, ValueType::kFloat32, ValueType::kBFloat16};

}  // namespace

TEST_CASE("odd shapes and every number of columns up to a few tiles") {
  for (int64_t columns : {1, 7, 63, 64, 65, 130, 257}) {
    for (int64_t rows : {1, 2, 3, 67}) {
      for (int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 50, 64, 65, 72}) {
        CheckEverywhere({rows, columns, n, 0.5 + 0.4 * static_cast<double>((rows + n) % 2)});
      }
    }
  }
}

TEST_CASE("every pattern, value type and type of X") {
  for (Pattern pattern : AllPatterns()) {
    for (ValueType value_type : kValueTypes) {
      for (ElementType type : {ElementType::kFloat32, ElementType::kFloat16}) {
        for (double sparsity : {0.7, 0.85, 0.9}) {
          for (int64_t n : {1, 2, 3, 4, 8, 20}) CheckEverywhere({70, 200, n, sparsity, pattern, value_type, type});
        }
      }
    }
  }
}

TEST_CASE("bias, ReLU and residual in every combination") {
  for (int bits = 0; bits < 8; ++bits) {
    for (ElementType type : {ElementType::kFloat32, ElementType::kFloat16}) {
      for (int64_t n : {1, 8, 70}) {
        CheckEverywhere({45, 100, n, 0.6, Pattern::kUniform, ValueType::kFloat16, type, (bits & 1) != 0,
                         (bits & 2) != 0, (bits & 4) != 0});
      }
    }
  }
}

TEST_CASE("several blocks of k, tasks and groups of columns") {
  for (double sparsity : {0.3, 0.9}) {
    for (int64_t n : {1, 4, 8, 64, 300}) {
      CheckEverywhere({n == 300 ? 40 : 333, n < 9 ? 5000 : 700, n, sparsity, Pattern::kUniform, ValueType::kFloat16,
                       ElementType::kFloat32, true, true, true});
    }
  }
}

TEST_CASE("rows too long for two-byte positions") {
  for (double sparsity : {0.5, 0.97}) {
    for (int64_t n : {1, 9}) CheckEverywhere({3, 66001, n, sparsity});
  }
}

TEST_CASE("results are the same bits for any number of threads, and from run to run") {
  for (int64_t n : {1, 8, 64, 130}) {
    const Problem problem({517, 1030, n, 0.8});
    for (Isa isa : SupportedIsas()) {
      const Tensor y = problem.Run(isa, 1);
      for (int threads : {1, 2, 5, 16}) CHECK(y.SameBytes(problem.Run(isa, threads)));
    }
  }
}

TEST_CASE("no columns of X: nothing is touched") {
  const OwnedPackedWeight weight = PackDense(RandomDense(5, 70, 0.5, Pattern::kUniform, 1), 5, 70, ValueType::kFloat16);
  for (Isa isa : SupportedIsas()) {
    MatMulArgs args;  // null pointers
    MakeSparseMatMul(weight.view, isa)->Run(args, 2, RunOn(2));
  }
}

TEST_CASE("infinities and NaNs among the weights reach the result") {
  const int64_t rows = 20, columns = 100;
  std::vector<float> dense = RandomDense(rows, columns, 0.5, Pattern::kUniform, 1);
  dense[3 * columns + 50] = std::numeric_limits<float>::infinity();
  dense[7 * columns + 99] = std::numeric_limits<float>::quiet_NaN();
  for (ValueType value_type : kValueTypes) {
    const OwnedPackedWeight weight = PackDense(dense, rows, columns, value_type);
    for (Isa isa : SupportedIsas()) {
      for (int64_t n : {1, 8, 40}) {
        const std::vector<float> x(static_cast<size_t>(n * columns), 0.5f);
        std::vector<float> y(static_cast<size_t>(n * rows));
        MatMulArgs args;
        args.x = x.data();
        args.y = y.data();
        args.n = n;
        args.activation = Activation::kRelu;
        MakeSparseMatMul(weight.view, isa)->Run(args, 1, RunOn(1));
        for (int64_t i = 0; i < n; ++i) {
          CHECK(y[static_cast<size_t>(i * rows + 3)] == std::numeric_limits<float>::infinity());
          CHECK(std::isnan(y[static_cast<size_t>(i * rows + 7)]));
          CHECK(std::isfinite(y[static_cast<size_t>(i * rows + 8)]));
        }
      }
    }
  }
}

TEST_CASE("the parts of a weight may lie at any address") {
  const std::vector<float> dense = RandomDense(33, 150, 0.5, Pattern::kUniform, 1);
  for (ValueType value_type : kValueTypes) {
    const OwnedPackedWeight weight = PackDense(dense, 33, 150, value_type);
    // Exactly as long as the parts, so that a sanitizer sees a read past them.
    std::unique_ptr<uint8_t[]> bitmap(new uint8_t[weight.bitmap.size() + 1]);
    std::unique_ptr<uint8_t[]> offsets(new uint8_t[weight.row_offsets.size() * 4 + 1]);
    std::unique_ptr<uint8_t[]> values(new uint8_t[weight.values.size() + 1]);
    std::memcpy(bitmap.get() + 1, weight.bitmap.data(), weight.bitmap.size());
    std::memcpy(offsets.get() + 1, weight.row_offsets.data(), weight.row_offsets.size() * 4);
    std::memcpy(values.get() + 1, weight.values.data(), weight.values.size());
    PackedWeight shifted = weight.view;
    const uint8_t* offsets_at = offsets.get() + 1;
    shifted.bitmap = bitmap.get() + 1;
    std::memcpy(&shifted.row_offsets, &offsets_at, sizeof(offsets_at));
    shifted.values = values.get() + 1;
    for (Isa isa : SupportedIsas()) {
      for (int64_t n : {1, 8, 20}) {
        const std::vector<float> x = RandomFloats(static_cast<size_t>(n * 150), 2);
        std::vector<float> straight(static_cast<size_t>(n * 33)), moved(static_cast<size_t>(n * 33));
        MatMulArgs args;
        args.x = x.data();
        args.n = n;
        args.y = straight.data();
        MakeSparseMatMul(weight.view, isa)->Run(args, 1, RunOn(1));
        args.y = moved.data();
        MakeSparseMatMul(shifted, isa)->Run(args, 1, RunOn(1));
        CHECK(straight == moved);
      }
    }
  }
}
