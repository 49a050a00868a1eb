// Where pruning computes. The algorithms (opt_layer, input_statistics, target_statistics, prune, sparsegpt, admm,
// scores) are written once, on this interface; cpu/ and cuda/ implement it. Both agree within
// rounding, and each repeats bit by bit.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/pruning/dense_kernels.h"
#include "ops/pruning/workers.h"

namespace flashllm::pruning {

class Device;

/// Elements in a device's memory, zeros at first. To be read by Download() only.
template <typename T>
class Array {
 public:
  Array() = default;
  Array(Device& device, int64_t size);
  ~Array();
  Array(Array&& other) noexcept { *this = std::move(other); }
  Array& operator=(Array&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

 private:
  Device* device_ = nullptr;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

/// In a device's memory, row-major and contiguous.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  Array<double> data;

  Matrix() = default;
  Matrix(Device& device, int64_t row_count, int64_t column_count)
      : rows(row_count), columns(column_count), data(device, row_count * column_count) {}

  int64_t size() const { return rows * columns; }
  double* Row(int64_t row) { return data.data() + row * columns; }
  const double* Row(int64_t row) const { return data.data() + row * columns; }
};

/// Queries, keys, values and outputs are [sequences · length, heads · width].
struct AttentionShape {
  int64_t sequences = 0;
  int64_t length = 0;
  int64_t heads = 0;
  int64_t width = 0;
};

/// Sums over tokens of inputs x, less a shift that is the mean of the first call's: what AddInputs() keeps of
/// `features` inputs.
struct InputSums {
  int64_t features = 0;
  float* shift = nullptr;
  double* sum = nullptr;   // Σ (x − shift)
  double* gram = nullptr;  // Σ (x − shift)(x − shift)ᵀ, lower triangle at least
};

/// What conjugate gradients keep of each row: all [rows, columns] but `squared`, [rows].
struct ConjugateRows {
  int64_t rows = 0;
  int64_t columns = 0;
  double* z = nullptr;
  double* residual = nullptr;
  double* direction = nullptr;
  uint8_t* support = nullptr;
  double* squared = nullptr;
};

/// All pointers are to this device's memory unless said otherwise. Calls are made by one thread at a time and take
/// effect in their order. Errors are PruningError; after Cancel, any call may throw Cancelled.
class Device {
 public:
  virtual ~Device() = default;

  /// For reports: `cpu, avx512`, `NVIDIA H100 80GB HBM3`.
  virtual std::string Describe() const = 0;

  /// Bytes that allocations may still take where that saves copies to and from the host; 0 where the host's memory is
  /// this device's.
  virtual int64_t SpareBytes() const = 0;

  // Memory. Sizes are in bytes; Upload and Download are from and to the host and have happened when they return.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* memory) noexcept = 0;
  virtual void Zero(void* memory, size_t bytes) = 0;
  virtual void Copy(void* to, const void* from, size_t bytes) = 0;
  virtual void Upload(void* to, const void* from, size_t bytes) = 0;
  virtual void Download(void* to, const void* from, size_t bytes) = 0;

  // Products and factorisations.
  virtual void Multiply(const Product<float>& product) = 0;
  virtual void Multiply(const Product<double>& product) = 0;
  /// a[n, n] becomes L, lower triangular with zeros above, L · Lᵀ = a. Reads the lower triangle only. Throws where a is
  /// not positive definite.
  virtual void Cholesky(int64_t n, double* a) = 0;
  /// inverse[n, n] = lower⁻¹, zeros above the diagonal; `inverse` is zero before.
  virtual void InvertLower(int64_t n, const double* lower, double* inverse) = 0;

  // Elements of vectors and matrices.
  virtual void Widen(int64_t n, const float* from, double* to) = 0;
  /// y += alpha · x
  virtual void Add(int64_t n, double alpha, const double* x, double* y) = 0;
  virtual double Dot(int64_t n, const double* x, const double* y) = 0;
  virtual void Absolute(int64_t n, const double* x, double* y) = 0;
  /// The order of all elements turned round.
  virtual void Reverse(int64_t n, double* x) = 0;
  /// y[rows, columns] = x scaled by column.
  virtual void ScaleColumns(int64_t rows, int64_t columns, const double* x, const double* scale, double* y) = 0;
  virtual void ReadDiagonal(int64_t n, const double* a, double* diagonal) = 0;
  virtual void WriteDiagonal(int64_t n, const double* diagonal, double* a) = 0;
  /// Marks the `count` lowest scores, which are not negative, of each group of `size`; of equal ones those that come
  /// first.
  virtual void MarkLowest(int64_t groups, int64_t size, int64_t count, const double* scores, uint8_t* marks) = 0;
  virtual void ClearMarked(int64_t n, const uint8_t* marks, double* x) = 0;
  /// Rows and columns of h[n, n] and columns of weight[rows, n] become zero where marked.
  virtual void ClearInputs(int64_t n, int64_t rows, const uint8_t* marks, double* h, double* weight) = 0;

  // Statistics of calibration tokens.
  /// x[count, features] -= shift, and is added to the sums. With `first`, the shift is set to x's mean before.
  virtual void AddInputs(int64_t count, bool first, const InputSums& sums, float* x) = 0;
  /// cross[outs, ins] += yᵀ · x in float32, added up in float64; sum[outs] += y.
  virtual void AddTargets(int64_t count, int64_t outs, int64_t ins, const float* y, const float* x, double* cross,
                          double* sum) = 0;
  /// moment[features, features] = Σ x xᵀ, or of x − mean: symmetric, of `tokens` tokens.
  virtual void Moment(int64_t tokens, bool centred, const InputSums& sums, double* moment) = 0;
  /// rest = cross + sum · movedᵀ − rest; [outs, ins], [outs], [ins]
  virtual void TargetRest(int64_t outs, int64_t ins, const double* cross, const double* sum, const double* moved,
                          double* rest) = 0;

  // Steps of the methods.
  /// scores[rows, width] = (w / u)² for columns first … first + width of weight[rows, columns] and the diagonal of
  /// upper[columns, columns].
  virtual void SparseGptScores(int64_t rows, int64_t columns, int64_t first, int64_t width, const double* weight,
                               const double* upper, double* scores) = 0;
  /// Drops marked weights, from the left to the right, spreading each one's error over the later columns of the block;
  /// errors[rows, width] is what the columns after the block have to take up.
  virtual void SparseGptSweep(int64_t rows, int64_t columns, int64_t first, int64_t width, const uint8_t* marks,
                              const double* upper, double* weight, double* errors) = 0;
  /// h[n, n] in units in which each input has norm 1; inputs of norm 0 get a 1 on the diagonal.
  virtual void NormaliseMoment(int64_t n, const double* norm, double* h) = 0;
  /// dual += w − z; right = target + rho · (z − dual)
  virtual void AdmmStep(int64_t n, double rho, const double* w, const double* z, const double* target, double* dual,
                        double* right) = 0;
  /// support = z ≠ 0; residual is cut to it, direction = residual, squared = ‖residual‖² of each row.
  virtual void ConjugateStart(const ConjugateRows& rows) = 0;
  /// One step of each row; image[rows, columns] = direction · h.
  virtual void ConjugateStep(const double* image, const ConjugateRows& rows) = 0;

  // The layer's forward pass in float32; rows are tokens.
  virtual void AddBias(int64_t rows, int64_t columns, const float* bias, float* y) = 0;
  /// Layer norm with scale and shift (null for none); y may be x.
  virtual void Normalise(int64_t rows, int64_t columns, const float* x, const float* scale, const float* shift,
                         float* y) = 0;
  virtual void Attend(const AttentionShape& shape, const float* q, const float* k, const float* v, float* y) = 0;
  virtual void Activate(int64_t n, bool gelu, float* x) = 0;
  /// y += a − b
  virtual void AddDifference(int64_t n, const float* a, const float* b, float* y) = 0;

  /// While set and true, work ends with Cancelled. Borrowed; null for none.
  virtual void set_cancelled(const std::atomic<bool>* cancelled) = 0;
};

/// The epsilon of OPT's layer norms.
constexpr float kNormEpsilon = 1e-5f;

/// What Cholesky() throws.
[[noreturn]] void ThrowNotPositive(int64_t n, int64_t near);

/// On the host's cores, by `workers`, which must outlive it.
std::unique_ptr<Device> MakeCpuDevice(Workers& workers);

/// On an NVIDIA GPU; `workers`, which must outlive it, copy on the host's side. Throws PruningError that says why there
/// is none: no driver, no cuBLAS, or a build without CUDA.
std::unique_ptr<Device> MakeCudaDevice(Workers& workers, int ordinal);

template <typename T>
Array<T>::Array(Device& device, int64_t size) : Array() {  // so that the destructor frees what cannot be zeroed
  device_ = &device;
  size_ = size;
  if (size == 0) return;
  data_ = static_cast<T*>(device.Allocate(static_cast<size_t>(size) * sizeof(T)));
  device.Zero(data_, static_cast<size_t>(size) * sizeof(T));
}

template <typename T>
Array<T>::~Array() {
  if (data_ != nullptr) device_->Free(data_);
}

/// An array with the content of a vector, or of anything else with data() and size().
template <typename Values>
auto ToDevice(Device& device, const Values& values) {
  using T = std::decay_t<decltype(values[0])>;
  Array<T> array(device, static_cast<int64_t>(values.size()));
  if (!array.empty()) device.Upload(array.data(), values.data(), values.size() * sizeof(T));
  return array;
}

template <typename T>
std::vector<T> ToHost(Device& device, const Array<T>& array) {
  std::vector<T> values(static_cast<size_t>(array.size()));
  if (!array.empty()) device.Download(values.data(), array.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace flashllm::pruning
