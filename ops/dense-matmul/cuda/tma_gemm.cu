#include "ops/dense-matmul/cuda/tma_gemm.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "ops/cuda/launch.h"
#include "ops/cuda/tensor_map.h"
#include "ops/dense-matmul/cuda/tma_gemm.cuh"

namespace flashllm::cuda {
namespace {

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// With up to so many columns a product takes the time of reading its weight.
constexpr int64_t kMemoryColumns = 128;
/// Tiles of 192 rows of X, which no cluster shares, are for one or two of them.
constexpr int64_t kTrioColumns = 384;

template <class Tile>
struct TmaInstance {
  /// Where a cluster cuts K, each block has some steps of it.
  static constexpr int64_t kLeastK = Tile::kSplit > 1 ? (4 * Tile::kSplit - 1) * kStepK + 1 : 1;

  static int64_t Tiles(const DenseMatMulArgs& args) {
    return CeilDivide(args.m, Tile::kWidth) * CeilDivide(args.n, Tile::kRows * Tile::kCluster);
  }

  /// What a launch takes, in rows of W times steps of K of one multiprocessor, with fixed costs as on an H100; where
  /// the tensor cores limit, times 64 rows of X, and without the steps, of which all have as many.
  static double Cost(const DenseDevice& device, const DenseMatMulArgs& args) {
    if (device.clusters[Tile::kBlocks / 2] == 0) return std::numeric_limits<double>::infinity();
    const double waves = static_cast<double>(CeilDivide(Tiles(args), device.clusters[Tile::kBlocks / 2]));
    constexpr double kWideTile = 8;
    if (Tile::kConsumers == 3 && args.n > kTrioColumns) return std::numeric_limits<double>::infinity();
    if (args.n > kMemoryColumns) return waves * (Tile::kWidth + kWideTile) * Tile::kConsumers;
    // Few columns: memory limits, unless so few multiprocessors work that it is they; each can take kBurst of its
    // share. Of tiles for which memory limits alike, those are taken that keep more multiprocessors at work.
    constexpr double kBurst = 1.5, kTile = 260, kExchange = 600, kUneven = 1e-3;
    const int64_t steps = CeilDivide(args.k, kStepK);
    if (args.k < kLeastK) return std::numeric_limits<double>::infinity();
    // Up to 64 columns, widths beside 64 and 128 are for one wave: two of 96 take OPT-30B's qkv 80 us, three of 64 77.
    if (Tile::kConsumers == 1 && Tile::kSplit == 1 && Tile::kWidth % 64 != 0 && waves > 1)
      return std::numeric_limits<double>::infinity();
    const double busiest = waves * Tile::kWidth * CeilDivide(steps, Tile::kSplit);
    const double even = static_cast<double>(args.m) * steps / device.sm_count;
    return std::max(busiest / kBurst, even) + kUneven * busiest +
           (Tile::kSplit > 1 ? waves * (kTile + kExchange) : kTile);
  }

  static cudaError_t Launch(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
    TmaGemmParams params = {};
    params.epilogue = MakeEpilogue(args);
    // Rows of the box that do not exist are not even filled: they only meet rows of Y that are not stored.
    const int x_rows = static_cast<int>(std::min<int64_t>(Tile::kRows, (args.n + 7) / 8 * 8));
    params.x_box_bytes = x_rows * 128;
    params.k_steps = static_cast<int>(CeilDivide(args.k, kStepK));
    params.m_tiles = static_cast<int>(CeilDivide(args.m, Tile::kWidth));
    params.n_tiles = static_cast<int>(CeilDivide(args.n, Tile::kRows * Tile::kCluster));
    params.weights_late = args.weights_late;
    params.group = std::min(params.n_tiles, 16 / Tile::kCluster);
    void* const encode = device.encode_tensor_map;
    cudaError_t error = EncodeTensorMap(encode, args.x, args.n, args.k, args.x_stride, x_rows, &params.x_map);
    // Panels are one matrix of kPanelK k, one below the other.
    const bool panels = args.w_order == WeightOrder::kPanels;
    const int64_t w_rows = panels ? args.m * params.k_steps : args.m, w_k = panels ? kPanelK : args.k;
    params.w_step_k = panels ? 0 : kStepK;
    params.w_step_rows = panels ? static_cast<int>(args.m) : 0;
    if (error == cudaSuccess)
      error = EncodeTensorMap(encode, args.w, w_rows, w_k, w_k, Tile::kWidth / Tile::kCluster, &params.w_map);
    if (error != cudaSuccess) return error;

    // A split cluster exchanges sums once.
    const int64_t clusters =
        Tile::kSplit > 1 ? Tiles(args) : std::min<int64_t>(device.clusters[Tile::kBlocks / 2], Tiles(args));
    LaunchShape shape = ShapeOf(clusters);
    shape.programmatic = args.programmatic;
    return LaunchKernel(TmaGemm<Tile>, shape, params, stream);
  }

  /// How many clusters of this instance run at once.
  static cudaError_t CountClusters(int sm_count, int* clusters) {
    return cuda::CountClusters(TmaGemm<Tile>, ShapeOf(sm_count), clusters);
  }

  static LaunchShape ShapeOf(int64_t clusters) {
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>(clusters * Tile::kBlocks));
    shape.threads = Tile::kThreads;
    shape.shared_bytes = Tile::kTotalBytes;
    shape.cluster = Tile::kBlocks;
    return shape;
  }

  static TmaKernel Describe() { return {Tile::kRows, Tile::kWidth, Tile::kCluster, Tile::kSplit, kLeastK, Launch}; }

  static cudaError_t Prepare() {
    return cudaFuncSetAttribute(TmaGemm<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kTotalBytes);
  }
};

using Skinny64 = TmaInstance<TmaTile<1, 64, 1>>;
using Skinny96 = TmaInstance<TmaTile<1, 96, 1>>;
using Skinny128 = TmaInstance<TmaTile<1, 128, 1>>;
using Skinny160 = TmaInstance<TmaTile<1, 160, 1>>;
using Skinny224 = TmaInstance<TmaTile<1, 224, 1>>;
using Split64By2 = TmaInstance<TmaTile<1, 64, 1, 2>>;
using Split96By2 = TmaInstance<TmaTile<1, 96, 1, 2>>;
using Split64By4 = TmaInstance<TmaTile<1, 64, 1, 4>>;
using Wide64 = TmaInstance<TmaTile<2, 64, 1>>;
using Wide96 = TmaInstance<TmaTile<2, 96, 1>>;
using Wide128 = TmaInstance<TmaTile<2, 128, 1>>;
using Wide160 = TmaInstance<TmaTile<2, 160, 1>>;
using Wide192 = TmaInstance<TmaTile<2, 192, 1>>;
using Wide224 = TmaInstance<TmaTile<2, 224, 1>>;
using Wide256 = TmaInstance<TmaTile<2, 256, 1>>;
using Trio64 = TmaInstance<TmaTile<3, 64, 1>>;
using Trio96 = TmaInstance<TmaTile<3, 96, 1>>;
using Trio128 = TmaInstance<TmaTile<3, 128, 1>>;
using Trio160 = TmaInstance<TmaTile<3, 160, 1>>;
using Trio192 = TmaInstance<TmaTile<3, 192, 1>>;
using Pair96 = TmaInstance<TmaTile<2, 96, 2>>;
using Pair128 = TmaInstance<TmaTile<2, 128, 2>>;
using Pair160 = TmaInstance<TmaTile<2, 160, 2>>;
using Pair192 = TmaInstance<TmaTile<2, 192, 2>>;
using Pair224 = TmaInstance<TmaTile<2, 224, 2>>;
using Pair256 = TmaInstance<TmaTile<2, 256, 2>>;

/// Launches the instance of least cost; of equals, the one named first.
template <class Best, class... Others>
cudaError_t LaunchCheapest(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  const double costs[] = {Best::Cost(device, args), Others::Cost(device, args)...};
  using Function = cudaError_t (*)(const DenseDevice&, const DenseMatMulArgs&, cudaStream_t);
  const Function launches[] = {Best::Launch, Others::Launch...};
  const auto best = std::min_element(std::begin(costs), std::end(costs)) - std::begin(costs);
  return launches[best](device, args, stream);
}

template <class... Listed>
struct Instances {
  static cudaError_t Prepare() {
    cudaError_t error = cudaSuccess;
    ((error = error == cudaSuccess ? Listed::Prepare() : error), ...);
    return error;
  }
  static std::vector<TmaKernel> Describe() { return {Listed::Describe()...}; }
};

using AllInstances = Instances<Skinny64, Skinny96, Skinny128, Skinny160, Skinny224, Split64By2, Split96By2, Split64By4,
                               Wide64, Wide96, Wide128, Wide160, Wide192, Wide224, Wide256, Trio64, Trio96, Trio128,
                               Trio160, Trio192, Pair96, Pair128, Pair160, Pair192, Pair224, Pair256>;

}  // namespace

cudaError_t PrepareTmaGemm(DenseDevice* info) {
  const cudaError_t error = FindTensorMapEncoder(&info->encode_tensor_map);
  if (error != cudaSuccess) return error;
  const cudaError_t prepared = AllInstances::Prepare();
  if (prepared != cudaSuccess) return prepared;
  info->clusters[0] = info->sm_count;
  const cudaError_t counted = Pair256::CountClusters(info->sm_count, &info->clusters[1]);
  return counted == cudaSuccess ? Split64By4::CountClusters(info->sm_count, &info->clusters[2]) : counted;
}

std::vector<TmaKernel> TmaKernels() { return AllInstances::Describe(); }

bool SuitsTmaGemm(const DenseDevice& device, const DenseMatMulArgs& args) {
  return device.encode_tensor_map != nullptr && IsAligned16(args.w) && IsAligned16(args.x) && args.k % 8 == 0 &&
         args.x_stride % 8 == 0;
}

cudaError_t LaunchTmaGemm(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  if (args.n <= 64)
    return LaunchCheapest<Skinny128, Skinny224, Skinny160, Skinny96, Skinny64, Split96By2, Split64By2, Split64By4>(
        device, args, stream);
  if (args.n <= kMemoryColumns)
    return LaunchCheapest<Wide256, Wide224, Wide192, Wide160, Wide128, Wide96, Wide64>(device, args, stream);
  return LaunchCheapest<Pair256, Pair224, Pair192, Pair160, Pair128, Pair96, Wide256, Wide224, Wide192, Wide160,
                        Wide128, Wide96, Trio192, Trio160, Trio128, Trio96, Trio64>(device, args, stream);
}

}  // namespace flashllm::cuda
