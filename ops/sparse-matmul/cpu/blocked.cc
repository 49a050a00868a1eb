// SparseMatMul over vector kernels: cuts the work into tasks, keeps what a task needs in caches, and finishes the sums.
//
// Two ways. `expand` puts the weights of a row back between their zeros, in registers, and multiplies all of them: few
// columns. `list` + `accumulate` multiply nonzeros only, each with a vector of columns of a transposed X: many columns,
// or few nonzeros. Which one runs, and every order of summation, depends on shapes and density only, never on threads.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "ops/sparse-matmul/cpu/implementations.h"
#include "ops/sparse-matmul/cpu/kernels.h"

namespace flashllm::cpu {
namespace {

// Columns of X that are transposed and multiplied at once: 4 tiles share each list.
constexpr int64_t kMaxColumns = 4 * kMaxTile;
// Rows of a task at most. More share what is read of X, which is larger than a second-level cache where K is; fewer
// keep their sums in it: 128 KB for kMaxColumns columns.
constexpr int64_t kTaskRows = 128;
// Rows that are listed before they are multiplied where there is one tile; with several, all rows of the task are.
constexpr int64_t kGroupRows = 16;
// Positions of nonzeros are kept in two bytes.
constexpr int64_t kMaxIndexed = 1 << 16;
// A tile of a block of k takes this many bytes: most of a first-level cache. Where nonzeros are few, longer lists pay
// more than a second-level cache costs.
constexpr int64_t kPanelBytes = 32 << 10;
constexpr int64_t kSparsePanelBytes = 64 << 10;
constexpr double kSparsePanelFrom = 0.87;
// Where weights are expanded, X may take this many, of a second-level cache: a row that is read in pieces, one for each
// block of k, costs more than X that comes from there.
constexpr int64_t kExpandBytes = 128 << 10;
// What is read of the weight before it is used block by block: half of a second-level cache.
constexpr int64_t kReadAheadBytes = 512 << 10;
// No task reads less of the weight than this, about what a core streams in the time it takes to hand a task over.
constexpr int64_t kMinTaskBytes = 48 << 10;
constexpr int64_t kTasksPerThread = 8;

// Uninitialised memory on a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// Tiles of X columns: as many of kMaxTile as fit, then one of the rest, rounded up to whole vectors.
struct Tile {
  int64_t column = 0;   // first column of X
  int64_t columns = 0;  // that exist
  int64_t width = 0;    // that are computed
  int64_t start = 0;    // widths of the tiles before it
};

struct Tiling {
  std::vector<Tile> tiles;
  int64_t width = 0;  // of all tiles

  Tiling(int64_t first_column, int64_t columns, int64_t vector) {
    for (int64_t c = 0; c < columns; c += kMaxTile) {
      Tile tile;
      tile.column = first_column + c;
      tile.columns = std::min(kMaxTile, columns - c);
      tile.width = tile.columns <= 8 ? 8 : (tile.columns + vector - 1) / vector * vector;
      tile.start = width;
      width += tile.width;
      tiles.push_back(tile);
    }
  }
};

// A transposed copy of columns of X, zero past K: for each tile [64 · words][width].
struct Panels {
  int64_t rows;  // 64 · words
  int64_t block_words;
  int64_t blocks;
  Buffer<float> data;

  Panels(int64_t words, int64_t words_per_block, int64_t width)
      : rows(64 * words),
        block_words(std::min(words, words_per_block)),
        blocks((words + block_words - 1) / block_words),
        data(rows * width) {}

  // Row k of a tile.
  float* At(const Tile& tile, int64_t k) const { return data.get() + rows * tile.start + k * tile.width; }
};

const uint8_t* At(const void* data, int64_t element, ElementType type) {
  return static_cast<const uint8_t*>(data) + element * (type == ElementType::kFloat16 ? 2 : 4);
}

class BlockedSparseMatMul final : public SparseMatMul {
 public:
  BlockedSparseMatMul(const PackedWeight& weight, const Kernels& kernels)
      : weight_(weight), kernels_(kernels), elements_(weight.out_features * weight.in_features) {
    view_.bitmap = weight.bitmap;
    view_.row_bytes = BitmapRowBytes(weight.in_features);
    view_.words = view_.row_bytes / 8;
    view_.values = static_cast<const uint8_t*>(weight.values);
    view_.type = weight.value_type;
    view_.dense = weight.nnz > elements_ / 5 * 2;
    total_bytes_ = BytesBefore(weight.out_features);
    view_.gather_columns = 0;
    for (int columns = 1; columns <= kMaxGatherColumns; ++columns) {
      if (Sparsity() >= kernels_.gather_from[columns - 1]) view_.gather_columns = columns;
    }
    if (Sparsity() >= kernels_.index_from && 64 * view_.words <= kMaxIndexed) MakeIndex();
  }

  void Run(const MatMulArgs& args, int threads, const ParallelFor& parallel_for) const override {
    if (args.n == 0) return;
    std::vector<float> bias;
    if (args.bias != nullptr) {
      bias.resize(static_cast<size_t>(weight_.out_features));
      LoadFloats(args.bias, 0, weight_.out_features, args.type, bias.data());
    }
    const float* bias_data = bias.empty() ? nullptr : bias.data();
    if (args.n <= kMaxExpandColumns && Sparsity() < kernels_.skip_from[args.n - 1]) {
      RunExpand(args, bias_data, threads, parallel_for);
      return;
    }
    for (int64_t column = 0; column < args.n; column += kMaxColumns) {
      RunSkip(args, bias_data, column, std::min(kMaxColumns, args.n - column), threads, parallel_for);
    }
  }

 private:
  double Sparsity() const { return 1.0 - static_cast<double>(weight_.nnz) / static_cast<double>(elements_); }

  // Bytes of the weight before row m.
  int64_t BytesBefore(int64_t m) const {
    return m * (view_.row_bytes + 4) + LoadOffset(weight_.row_offsets, m) * SizeOf(weight_.value_type);
  }

  // Rows that cut the weight into parts of about equal bytes, the first and the end too.
  using Cuts = std::vector<int64_t>;

  // Those of so many parts: found once. Where rows begin is spread over memory that is in no cache any more when a
  // decoder's next step comes, and one thread would look for it while the others wait.
  const Cuts& CutRows(int64_t tasks) const {
    const std::lock_guard<std::mutex> lock(cuts_mutex_);
    Cuts& cuts = cuts_[tasks];
    if (cuts.empty()) cuts = FindCuts(tasks);
    return cuts;
  }

  Cuts FindCuts(int64_t tasks) const {
    Cuts cuts(static_cast<size_t>(tasks + 1));
    for (int64_t i = 1; i < tasks; ++i) {
      const int64_t target =
          static_cast<int64_t>(static_cast<double>(total_bytes_) * static_cast<double>(i) / static_cast<double>(tasks));
      int64_t low = cuts[static_cast<size_t>(i - 1)], high = weight_.out_features;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (BytesBefore(middle) < target) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      cuts[static_cast<size_t>(i)] = low;
    }
    cuts.back() = weight_.out_features;
    return cuts;
  }

  int64_t TaskCount(int threads) const {
    const int64_t by_bytes = total_bytes_ / kMinTaskBytes;
    return std::max<int64_t>(1, std::min({by_bytes, threads * kTasksPerThread, weight_.out_features}));
  }

  void RunExpand(const MatMulArgs& args, const float* bias, int threads, const ParallelFor& parallel_for) const {
    const int64_t padded = 64 * view_.words;
    const Buffer<float> x(args.n * padded);
    for (int64_t n = 0; n < args.n; ++n) {
      LoadFloats(args.x, n * weight_.in_features, weight_.in_features, args.type, x.get() + n * padded);
      std::fill(x.get() + n * padded + weight_.in_features, x.get() + (n + 1) * padded, 0.0f);
    }
    const Tiling tiling(0, args.n, args.n);
    const Cuts& cuts = CutRows(threads > 1 ? TaskCount(threads) : 1);
    Parallel(static_cast<int64_t>(cuts.size()) - 1, parallel_for, [&](int64_t task) {
      const int64_t end = cuts[static_cast<size_t>(task + 1)];
      for (int64_t m = cuts[static_cast<size_t>(task)]; m < end; m += kTaskRows) {
        ExpandRows(args, bias, tiling.tiles[0], x.get(), m, std::min(kTaskRows, end - m));
      }
    });
  }

  void ExpandRows(const MatMulArgs& args, const float* bias, const Tile& tile, const float* x, int64_t m,
                  int64_t rows) const {
    float sums[kTaskRows * kMaxExpandColumns] = {};
    int64_t next[kTaskRows];
    for (int64_t r = 0; r < rows; ++r) next[r] = LoadOffset(weight_.row_offsets, m + r);
    // As much of X at once as stays in a cache while the rows go by.
    const int64_t block = std::min(kMostExpandWords, kExpandBytes / (64 * 4 * args.n));
    for (int64_t word = 0; word < view_.words; word += block) {
      kernels_.expand(view_, {m, m + rows, word, std::min(view_.words, word + block), next}, x, args.n, sums);
    }
    Finish(args, bias, tile, sums, args.n, m, rows);
  }

  void RunSkip(const MatMulArgs& args, const float* bias, int64_t column, int64_t columns, int threads,
               const ParallelFor& parallel_for) const {
    const Tiling tiling(column, columns, kernels_.vector);
    const Panels panels(view_.words, BlockWords(tiling.tiles[0].width), tiling.width);
    const auto fill = [&](int64_t block) {
      for (const Tile& tile : tiling.tiles) FillPanel(args, tile, panels, block);
    };
    // A small X is transposed sooner than handed over.
    if (columns * weight_.in_features <= 16384) {
      for (int64_t block = 0; block < panels.blocks; ++block) fill(block);
    } else {
      Parallel(panels.blocks, parallel_for, fill);
    }
    const int64_t least = (weight_.out_features + kTaskRows - 1) / kTaskRows;
    const Cuts& cuts = CutRows(std::min(weight_.out_features, std::max(least, TaskCount(threads))));
    Parallel(static_cast<int64_t>(cuts.size()) - 1, parallel_for, [&](int64_t task) {
      const int64_t end = cuts[static_cast<size_t>(task + 1)];
      for (int64_t m = cuts[static_cast<size_t>(task)], rows; m < end; m += rows) {
        rows = std::min(RowsReadAhead(), end - m);
        SkipRows(args, bias, tiling, panels, m, rows);
      }
    });
  }

  // Rows of which the weight stays in a second-level cache while their blocks go by.
  int64_t RowsReadAhead() const {
    const int64_t row_bytes = total_bytes_ / weight_.out_features + 1;
    return std::clamp<int64_t>(kReadAheadBytes / row_bytes, kGroupRows, kTaskRows);
  }

  // 64-bit words of the bitmap in a block of k.
  int64_t BlockWords(int64_t width) const {
    const int64_t bytes = Sparsity() >= kSparsePanelFrom ? kSparsePanelBytes : kPanelBytes;
    return std::max<int64_t>(1, bytes / (64 * 4 * width));
  }

  void MakeIndex() {
    index_.resize(static_cast<size_t>(weight_.nnz + kListSlack));
    uint16_t* next = index_.data();
    for (int64_t m = 0; m < weight_.out_features; ++m) {
      next += kernels_.list(view_, view_.bitmap + m * view_.row_bytes, view_.words, next);
    }
  }

  void FillPanel(const MatMulArgs& args, const Tile& tile, const Panels& panels, int64_t block) const {
    const int64_t k = block * 64 * panels.block_words;
    const int64_t count = std::min(64 * panels.block_words, weight_.in_features - k);
    const int64_t padded = std::min(64 * panels.block_words, panels.rows - k);
    float* panel = panels.At(tile, k);
    const int64_t written = tile.columns < tile.width ? 0 : count;
    std::memset(panel + written * tile.width, 0, static_cast<size_t>((padded - written) * tile.width) * sizeof(float));
    const int64_t first = tile.column * weight_.in_features + k;
    if (args.type == ElementType::kFloat32) {
      kernels_.transpose(static_cast<const float*>(args.x) + first, weight_.in_features, tile.columns, count, panel,
                         tile.width);
      return;
    }
    const Buffer<float> wide(tile.columns * count);
    for (int64_t c = 0; c < tile.columns; ++c) {
      LoadFloats(args.x, first + c * weight_.in_features, count, args.type, wide.get() + c * count);
    }
    kernels_.transpose(wide.get(), count, tile.columns, count, panel, tile.width);
  }

  void SkipRows(const MatMulArgs& args, const float* bias, const Tiling& tiling, const Panels& panels, int64_t m,
                int64_t rows) const {
    const int64_t group_rows = tiling.tiles.size() == 1 ? std::min(rows, kGroupRows) : rows;
    const int64_t list_room = 64 * panels.block_words + kListSlack;
    const Buffer<float> sums(rows * tiling.width);
    const Buffer<uint16_t> index(group_rows * list_room);
    const Buffer<float> value(group_rows * list_room);
    const bool indexed = !index_.empty();
    RowList lists[kTaskRows];
    int64_t next[kTaskRows];  // number of each row's next value
    std::memset(sums.get(), 0, static_cast<size_t>(rows * tiling.width) * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) next[r] = LoadOffset(weight_.row_offsets, m + r);
    ReadAhead(m, rows);
    for (int64_t block = 0; block < panels.blocks; ++block) {
      const int64_t word = block * panels.block_words;
      const int64_t words = std::min(panels.block_words, view_.words - word);
      for (int64_t group = 0; group < rows; group += group_rows) {
        const int64_t group_end = std::min(rows, group + group_rows);
        uint16_t* index_at = index.get();
        float* value_at = value.get();
        for (int64_t r = group; r < group_end; ++r) {
          const uint8_t* bits = view_.bitmap + (m + r) * view_.row_bytes + 8 * word;
          const int64_t count = kernels_.widen(view_, bits, words, next[r], value_at);
          const int64_t padded = (count + kListMultiple - 1) / kListMultiple * kListMultiple;
          if (!indexed) kernels_.list(view_, bits, words, index_at);
          lists[r - group] = {indexed ? index_.data() + next[r] : index_at, value_at, padded};
          next[r] += count;
          index_at += padded;
          value_at += padded;
        }
        for (const Tile& tile : tiling.tiles) {
          // The index counts from the first k, lists made here from the block's.
          const float* panel = panels.At(tile, indexed ? 0 : 64 * word);
          kernels_.accumulate(lists, group_end - group, panel, tile.width,
                              sums.get() + rows * tile.start + group * tile.width, tile.width);
        }
      }
    }
    for (const Tile& tile : tiling.tiles) {
      Finish(args, bias, tile, sums.get() + rows * tile.start, tile.width, m, rows);
    }
  }

  // Brings what rows have of the weight into a second-level cache, in the order of memory. A block of k then takes a
  // short piece of each row, which no hardware prefetcher would foresee: without this, N = 64 is a third slower.
  void ReadAhead(int64_t m, int64_t rows) const {
    const auto touch = [](const uint8_t* bytes, int64_t count) {
      uint8_t sum = 0;
      for (int64_t i = 0; i < count; i += 64) sum = static_cast<uint8_t>(sum ^ bytes[i]);
      __asm__ volatile("" : : "r"(sum));
    };
    const int64_t first = LoadOffset(weight_.row_offsets, m), last = LoadOffset(weight_.row_offsets, m + rows);
    touch(view_.bitmap + m * view_.row_bytes, rows * view_.row_bytes);
    const int64_t size = SizeOf(weight_.value_type);
    touch(view_.values + first * size, (last - first) * size);
    if (!index_.empty()) touch(reinterpret_cast<const uint8_t*>(index_.data() + first), (last - first) * 2);
  }

  // Bias, activation, residual and the type of Y, for sums [rows, stride] of which a tile's columns count.
  void Finish(const MatMulArgs& args, const float* bias, const Tile& tile, const float* sums, int64_t stride, int64_t m,
              int64_t rows) const {
    alignas(64) float transposed[kMaxTile * kTaskRows];
    alignas(64) float residual[kTaskRows];
    kernels_.transpose(sums, stride, rows, tile.columns, transposed, kTaskRows);
    for (int64_t c = 0; c < tile.columns; ++c) {
      float* y = transposed + c * kTaskRows;
      const int64_t at = (tile.column + c) * weight_.out_features + m;
      if (bias != nullptr) {
        for (int64_t r = 0; r < rows; ++r) y[r] += bias[m + r];
      }
      if (args.activation == Activation::kRelu) {
        for (int64_t r = 0; r < rows; ++r) y[r] = y[r] < 0 ? 0.0f : y[r];  // NaN stays
      }
      if (args.residual != nullptr) {
        LoadFloats(args.residual, at, rows, args.type, residual);
        for (int64_t r = 0; r < rows; ++r) y[r] += residual[r];
      }
      uint8_t* out = const_cast<uint8_t*>(At(args.y, at, args.type));
      if (args.type == ElementType::kFloat16) {
        kernels_.float_to_half(y, rows, out);
      } else {
        std::memcpy(out, y, static_cast<size_t>(rows) * sizeof(float));
      }
    }
  }

  void LoadFloats(const void* data, int64_t first, int64_t count, ElementType type, float* out) const {
    if (type == ElementType::kFloat16) {
      kernels_.half_to_float(At(data, first, type), count, out);
    } else {
      std::memcpy(out, At(data, first, type), static_cast<size_t>(count) * sizeof(float));
    }
  }

  template <typename Body>
  static void Parallel(int64_t count, const ParallelFor& parallel_for, const Body& body) {
    if (count == 1) {
      body(0);
    } else {
      parallel_for(count, body);
    }
  }

  const PackedWeight weight_;
  const Kernels& kernels_;
  const int64_t elements_;
  WeightView view_;
  int64_t total_bytes_ = 0;
  mutable std::mutex cuts_mutex_;
  mutable std::map<int64_t, Cuts> cuts_;  // by their number; what is in a map stays where it is
  std::vector<uint16_t> index_;           // k of each stored value; empty where lists are made from the bitmap
};

}  // namespace

std::unique_ptr<SparseMatMul> MakeBlocked(const PackedWeight& weight, const Kernels& kernels) {
  return std::make_unique<BlockedSparseMatMul>(weight, kernels);
}

}  // namespace flashllm::cpu
