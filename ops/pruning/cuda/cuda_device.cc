// Device on an NVIDIA GPU: products by cuBLAS, the rest by the kernels of this folder. All work is queued on one
// stream.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "ops/pruning/cuda/cublas.h"
#include "ops/pruning/cuda/kernels.h"
#include "ops/pruning/device.h"

namespace flashllm::pruning {
namespace {

constexpr int64_t kPanel = 2048;                   // rows of a moment whose float32 product is held at once
constexpr int64_t kScoreBytes = int64_t{1} << 30;  // of attention scores held at once, if those of one head take less
constexpr size_t kStaging = size_t{32} << 20;      // of each of two pinned buffers between mapped files and the GPU

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  throw PruningError(std::string("the GPU could not ") + what + ": " + cudaGetErrorString(error));
}

int Int(int64_t value) {
  if (value > std::numeric_limits<int>::max())
    throw PruningError("a matrix of " + std::to_string(value) + " rows is too large for cuBLAS");
  return static_cast<int>(value);
}

cuda::CublasOperation Operation(bool transposed) { return transposed ? cuda::kTranspose : cuda::kNone; }

/// A stream, for as long as it is needed.
class Stream {
 public:
  Stream() { Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Pinned memory that copies go through: memory of mapped files is pageable, and the driver copies that slowly. Many
/// threads copy to and from it, since most of the time goes into the files' page faults.
class Staging {
 public:
  explicit Staging(Workers& workers) : workers_(workers) {
    for (int i = 0; i < 2; ++i) {
      Check(cudaMallocHost(&buffers_[i], kStaging), "pin memory");
      Check(cudaEventCreateWithFlags(&free_[i], cudaEventDisableTiming), "make an event");
    }
  }
  ~Staging() {
    for (int i = 0; i < 2; ++i) {
      cudaFreeHost(buffers_[i]);
      cudaEventDestroy(free_[i]);
    }
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void Upload(cudaStream_t stream, char* to, const char* from, size_t bytes) {
    for (size_t done = 0, i = 0; done < bytes; done += kStaging, i ^= 1) {
      const size_t part = std::min(kStaging, bytes - done);
      Check(cudaEventSynchronize(free_[i]), "finish its work");
      CopyOnHost(static_cast<char*>(buffers_[i]), from + done, part);
      Check(cudaMemcpyAsync(to + done, buffers_[i], part, cudaMemcpyHostToDevice, stream), "copy");
      Check(cudaEventRecord(free_[i], stream), "record an event");
    }
  }

  void Download(cudaStream_t stream, char* to, const char* from, size_t bytes) {
    // While one part is copied out of its buffer, the next is on its way.
    size_t queued = 0;
    for (size_t done = 0, i = 0; done < bytes; done += kStaging, i ^= 1) {
      for (; queued < bytes && queued < done + 2 * kStaging; queued += kStaging) {
        const size_t slot = queued / kStaging % 2;
        Check(cudaMemcpyAsync(buffers_[slot], from + queued, std::min(kStaging, bytes - queued), cudaMemcpyDeviceToHost,
                              stream),
              "copy");
        Check(cudaEventRecord(free_[slot], stream), "record an event");
      }
      Check(cudaEventSynchronize(free_[i]), "finish its work");
      CopyOnHost(to + done, static_cast<const char*>(buffers_[i]), std::min(kStaging, bytes - done));
    }
  }

 private:
  void CopyOnHost(char* to, const char* from, size_t bytes) {
    constexpr size_t kPart = size_t{1} << 20;
    workers_.For(static_cast<int64_t>((bytes + kPart - 1) / kPart), [&](int64_t i, int) {
      const size_t at = static_cast<size_t>(i) * kPart;
      std::memcpy(to + at, from + at, std::min(kPart, bytes - at));
    });
  }

  Workers& workers_;
  void* buffers_[2] = {};
  cudaEvent_t free_[2] = {};
};

class CudaDevice final : public Device {
 public:
  CudaDevice(Workers& workers, int ordinal) : ordinal_(ordinal), staging_(workers) {}

  std::string Describe() const override {
    cudaDeviceProp properties;
    Check(cudaGetDeviceProperties(&properties, ordinal_), "say what it is");
    return properties.name;
  }
  void set_cancelled(const std::atomic<bool>* cancelled) override { cancelled_ = cancelled; }

  int64_t SpareBytes() const override {
    Enter();
    size_t free = 0, total = 0;
    uint64_t reserved = 0, used = 0;
    cudaMemPool_t pool = nullptr;
    Check(cudaMemGetInfo(&free, &total), "tell how much memory is free");
    Check(cudaDeviceGetDefaultMemPool(&pool, ordinal_), "name its memory pool");
    Check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "describe its memory pool");
    Check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "describe its memory pool");
    return static_cast<int64_t>(free + (reserved - used));
  }

  void* Allocate(size_t bytes) override {
    Enter();
    void* memory = nullptr;
    const cudaError_t error = cudaMallocAsync(&memory, bytes, Queue());
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      throw PruningError("the GPU has no memory for another " + std::to_string(bytes >> 20) + " MiB (" +
                         std::to_string(free >> 20) + " of " + std::to_string(total >> 20) +
                         " MiB are free): prune on the CPU, or with method sparsegpt instead of admm");
    }
    Check(error, "allocate");
    return memory;
  }
  void Free(void* memory) noexcept override {
    cudaSetDevice(ordinal_);
    cudaFreeAsync(memory, Queue());
  }
  void Zero(void* memory, size_t bytes) override {
    Enter();
    Check(cudaMemsetAsync(memory, 0, bytes, Queue()), "clear memory");
  }
  void Copy(void* to, const void* from, size_t bytes) override {
    Enter();
    Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, Queue()), "copy");
  }
  void Upload(void* to, const void* from, size_t bytes) override {
    Enter();
    staging_.Upload(Queue(), static_cast<char*>(to), static_cast<const char*>(from), bytes);
  }
  void Download(void* to, const void* from, size_t bytes) override {
    Enter();
    staging_.Download(Queue(), static_cast<char*>(to), static_cast<const char*>(from), bytes);
  }

  void Multiply(const Product<float>& p) override {
    Enter();
    // A row-major matrix is the transpose of a column-major one: Cᵀ = op(B)ᵀ · op(A)ᵀ.
    cublas_.Sgemm(Operation(p.b_transposed), Operation(p.a_transposed), Int(p.n), Int(p.m), Int(p.k), p.alpha, p.b,
                  Int(p.b_stride), p.a, Int(p.a_stride), p.beta, p.c, Int(p.c_stride));
  }
  void Multiply(const Product<double>& p) override {
    Enter();
    cublas_.Dgemm(Operation(p.b_transposed), Operation(p.a_transposed), Int(p.n), Int(p.m), Int(p.k), p.alpha, p.b,
                  Int(p.b_stride), p.a, Int(p.a_stride), p.beta, p.c, Int(p.c_stride));
  }
  void Cholesky(int64_t n, double* a) override;
  void InvertLower(int64_t n, const double* lower, double* inverse) override {
    Enter();
    cuda::Identity(Queue(), n, inverse);
    // Column-major, `lower` is the upper triangular Lᵀ, and its inverse times 1 is (L⁻¹)ᵀ.
    cublas_.Dtrsm(cuda::kLeft, cuda::kUpper, cuda::kNone, cuda::kNonUnit, Int(n), Int(n), 1, lower, Int(n), inverse,
                  Int(n));
    Done();
  }

  void Widen(int64_t n, const float* from, double* to) override { Run(cuda::Widen, n, from, to); }
  void Add(int64_t n, double alpha, const double* x, double* y) override { Run(cuda::Add, n, alpha, x, y); }
  double Dot(int64_t n, const double* x, const double* y) override {
    Array<double> parts(*this, cuda::kDotBlocks);
    Run(cuda::Dot, n, x, y, parts.data());
    double sum = 0;
    Download(&sum, parts.data(), sizeof sum);
    return sum;
  }
  void Absolute(int64_t n, const double* x, double* y) override { Run(cuda::Absolute, n, x, y); }
  void Reverse(int64_t n, double* x) override { Run(cuda::Reverse, n, x); }
  void ScaleColumns(int64_t rows, int64_t columns, const double* x, const double* scale, double* y) override {
    Run(cuda::ScaleColumns, rows, columns, x, scale, y);
  }
  void ReadDiagonal(int64_t n, const double* a, double* diagonal) override { Run(cuda::ReadDiagonal, n, a, diagonal); }
  void WriteDiagonal(int64_t n, const double* diagonal, double* a) override {
    Run(cuda::WriteDiagonal, n, diagonal, a);
  }
  void MarkLowest(int64_t groups, int64_t size, int64_t count, const double* scores, uint8_t* marks) override {
    Array<uint32_t> words(*this, cuda::SelectWords(groups));
    Run(cuda::MarkLowest, groups, size, count, scores, marks, words.data());
  }
  void ClearMarked(int64_t n, const uint8_t* marks, double* x) override { Run(cuda::ClearMarked, n, marks, x); }
  void ClearInputs(int64_t n, int64_t rows, const uint8_t* marks, double* h, double* weight) override {
    Run(cuda::ClearInputs, n, rows, marks, h, weight);
  }

  void AddInputs(int64_t count, bool first, const InputSums& sums, float* x) override;
  void AddTargets(int64_t count, int64_t outs, int64_t ins, const float* y, const float* x, double* cross,
                  double* sum) override;
  void Moment(int64_t tokens, bool centred, const InputSums& sums, double* moment) override {
    Run(cuda::Moment, tokens, centred, sums, moment);
  }
  void TargetRest(int64_t outs, int64_t ins, const double* cross, const double* sum, const double* moved,
                  double* rest) override {
    Run(cuda::TargetRest, outs, ins, cross, sum, moved, rest);
  }

  void SparseGptScores(int64_t rows, int64_t columns, int64_t first, int64_t width, const double* weight,
                       const double* upper, double* scores) override {
    Run(cuda::SparseGptScores, rows, columns, first, width, weight, upper, scores);
  }
  void SparseGptSweep(int64_t rows, int64_t columns, int64_t first, int64_t width, const uint8_t* marks,
                      const double* upper, double* weight, double* errors) override {
    Run(cuda::SparseGptSweep, rows, columns, first, width, marks, upper, weight, errors);
  }
  void NormaliseMoment(int64_t n, const double* norm, double* h) override { Run(cuda::NormaliseMoment, n, norm, h); }
  void AdmmStep(int64_t n, double rho, const double* w, const double* z, const double* target, double* dual,
                double* right) override {
    Run(cuda::AdmmStep, n, rho, w, z, target, dual, right);
  }
  void ConjugateStart(const ConjugateRows& rows) override { Run(cuda::ConjugateStart, rows); }
  void ConjugateStep(const double* image, const ConjugateRows& rows) override { Run(cuda::ConjugateStep, image, rows); }

  void AddBias(int64_t rows, int64_t columns, const float* bias, float* y) override {
    Run(cuda::AddBias, rows, columns, bias, y);
  }
  void Normalise(int64_t rows, int64_t columns, const float* x, const float* scale, const float* shift,
                 float* y) override {
    Run(cuda::Normalise, rows, columns, x, scale, shift, y);
  }
  void Attend(const AttentionShape& shape, const float* q, const float* k, const float* v, float* y) override;
  void Activate(int64_t n, bool gelu, float* x) override { Run(cuda::Activate, n, gelu, x); }
  void AddDifference(int64_t n, const float* a, const float* b, float* y) override {
    Run(cuda::AddDifference, n, a, b, y);
  }

 private:
  cudaStream_t Queue() const { return stream_.get(); }

  /// Any thread may call, and CUDA's current device is one of each thread.
  void Enter() const {
    if (cancelled_ != nullptr && cancelled_->load()) throw Cancelled();
    Check(cudaSetDevice(ordinal_), "be used");
  }
  void Done() const { Check(cudaGetLastError(), "start a kernel"); }

  template <typename Launch, typename... Arguments>
  void Run(Launch launch, Arguments... arguments) {
    Enter();
    launch(Queue(), arguments...);
    Done();
  }

  /// to[m, n] += aᵀ · b over `count` tokens in float32, by panels of rows; with `lower`, only what is left of or on the
  /// diagonal, at least.
  void AddProduct(int64_t count, const float* a, int64_t m, const float* b, int64_t n, bool lower, double* to);

  const int ordinal_;
  Stream stream_;
  Staging staging_;
  cuda::Cublas cublas_{stream_.get()};
  const std::atomic<bool>* cancelled_ = nullptr;
};

void CudaDevice::Cholesky(int64_t n, double* a) {
  Array<int64_t> failed(*this, 1);
  Enter();
  const int stride = Int(n);
  for (int64_t k = 0; k < n; k += cuda::kFactorBlock) {
    const int64_t width = std::min<int64_t>(cuda::kFactorBlock, n - k);
    const int64_t rest = n - k - width;
    double* const diagonal = a + k * n + k;
    double* const panel = diagonal + width * n;  // [rest, width]
    cuda::FactorBlock(Queue(), width, n, diagonal, k, failed.data());
    if (rest == 0) break;
    // Row-major, panel = panel · L⁻ᵀ; column-major, L⁻¹ · panelᵀ with L the transpose of an upper triangle. Then rest
    // −= panel · panelᵀ.
    cublas_.Dtrsm(cuda::kLeft, cuda::kUpper, cuda::kTranspose, cuda::kNonUnit, Int(width), Int(rest), 1, diagonal,
                  stride, panel, stride);
    cublas_.Dsyrk(cuda::kUpper, cuda::kTranspose, Int(rest), Int(width), -1, panel, stride, 1, panel + width, stride);
  }
  cuda::ClearUpper(Queue(), n, a);
  Done();
  int64_t near = 0;
  Download(&near, failed.data(), sizeof near);
  if (near != 0) ThrowNotPositive(n, near - 1);
}

void CudaDevice::AddProduct(int64_t count, const float* a, int64_t m, const float* b, int64_t n, bool lower,
                            double* to) {
  Array<float> tile(*this, std::min(kPanel, m) * n);
  for (int64_t row = 0; row < m; row += kPanel) {
    Product<float> product;
    product.a = a + row;
    product.a_stride = m;
    product.a_transposed = true;
    product.b = b;
    product.b_stride = n;
    product.c = tile.data();
    product.m = std::min(kPanel, m - row);
    product.n = product.c_stride = lower ? row + product.m : n;
    product.k = count;
    Multiply(product);
    Run(cuda::AddTile, product.m, product.n, static_cast<const float*>(tile.data()), to + row * n, n);
  }
}

void CudaDevice::AddInputs(int64_t count, bool first, const InputSums& sums, float* x) {
  Run(cuda::AddInputs, count, first, sums, x);
  AddProduct(count, x, sums.features, x, sums.features, true, sums.gram);
}

void CudaDevice::AddTargets(int64_t count, int64_t outs, int64_t ins, const float* y, const float* x, double* cross,
                            double* sum) {
  AddProduct(count, y, outs, x, ins, false, cross);
  Run(cuda::AddColumns, count, outs, y, sum);
}

void CudaDevice::Attend(const AttentionShape& shape, const float* q, const float* k, const float* v, float* y) {
  const int64_t hidden = shape.heads * shape.width;
  const int64_t square = shape.length * shape.length;
  const int64_t most =
      std::clamp<int64_t>(kScoreBytes / (square * static_cast<int64_t>(sizeof(float))), 1, shape.heads);
  Array<float> scores(*this, most * square);
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.width));
  const int length = Int(shape.length);
  const int width = Int(shape.width);
  const int stride = Int(hidden);
  for (int64_t sequence = 0; sequence < shape.sequences; ++sequence) {
    for (int64_t head = 0; head < shape.heads; head += most) {
      const int batch = Int(std::min(most, shape.heads - head));
      const int64_t at = sequence * shape.length * hidden + head * shape.width;
      Enter();
      cublas_.SgemmBatched(cuda::kTranspose, cuda::kNone, length, length, width, scale, k + at, stride, width, q + at,
                           stride, width, 0, scores.data(), length, square, batch);
      cuda::CausalSoftmax(Queue(), batch, shape.length, scores.data());
      Done();
      cublas_.SgemmBatched(cuda::kNone, cuda::kNone, width, length, length, 1, v + at, stride, width, scores.data(),
                           length, square, 0, y + at, stride, width, batch);
    }
  }
}

}  // namespace

std::unique_ptr<Device> MakeCudaDevice(Workers& workers, int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    throw PruningError(std::string("no NVIDIA GPU was found (") + cudaGetErrorString(error) +
                       "): look at the output of nvidia-smi, or use the CPU");
  }
  if (ordinal >= count) {
    throw PruningError("there is no GPU " + std::to_string(ordinal) + ": this machine has " + std::to_string(count) +
                       ", counted from 0");
  }
  Check(cudaSetDevice(ordinal), "be used");
  // Keeps what is freed for the next matrix: layers want the same sizes again and again.
  cudaMemPool_t pool = nullptr;
  Check(cudaDeviceGetDefaultMemPool(&pool, ordinal), "name its memory pool");
  uint64_t all = std::numeric_limits<uint64_t>::max();
  Check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), "set its memory pool up");
  return std::make_unique<CudaDevice>(workers, ordinal);
}

}  // namespace flashllm::pruning
