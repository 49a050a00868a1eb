// Attention of the decode graph, element by element against float64; the cache bit by bit.
#include "ops/decoder/cuda/attention.h"

#include <algorithm>

#include "tests/gpu/decoder_fixture.h"
#include "tests/gpu/decoder_test.h"

namespace flashllm::test {
namespace {

/// [B, 1, S, T] of 0 and -30000, or of 0 and -infinity; [B, H, S, T]; [1, 1, 1, T].
enum class Bias { kNone, kPadding, kInfinite, kFull, kRow };

struct Case {
  int64_t batch = 1, sequence = 1, heads = 2, head_dim = 64, past = 0;
  Bias bias = Bias::kNone;
  int64_t capacity = 0;  // of a cache in place; 0: the present is a tensor of its own
  bool ragged = false;   // lengths differ
  int splits = 0;
  double spread = 1.0;  // of queries: large ones make softmax sharp

  int64_t total() const { return past + sequence; }
  bool prompt() const { return past == 0; }
  bool pads() const { return bias == Bias::kPadding || bias == Bias::kInfinite; }
};

std::string Describe(const Case& c, int capability) {
  char text[240];
  std::snprintf(text, sizeof(text),
                "attention B=%lld S=%lld heads=%lldx%lld past=%lld bias=%d capacity=%lld ragged=%d splits=%d spread=%g "
                "cc=%d",
                static_cast<long long>(c.batch), static_cast<long long>(c.sequence), static_cast<long long>(c.heads),
                static_cast<long long>(c.head_dim), static_cast<long long>(c.past), static_cast<int>(c.bias),
                static_cast<long long>(c.capacity), c.ragged, c.splits, c.spread, capability);
  return text;
}

/// A case's tensors on the host. Caches hold NaN wherever no position is.
struct Problem {
  const Case c;
  std::vector<int64_t> length;
  Tensor qkv, bias;
  std::vector<double> past[2];  // keys, values
  int64_t past_capacity, present_capacity;

  explicit Problem(const Case& of) : c(of) {
    const int64_t width = c.heads * c.head_dim;
    std::mt19937 random(5);
    for (int64_t b = 0; b < c.batch; ++b) {
      const int64_t least = c.prompt() ? 1 : c.sequence;
      length.push_back(c.ragged && b > 0 ? least + static_cast<int64_t>(random() % (c.total() - least + 1))
                                         : c.total());
    }
    qkv = Random(c.batch * c.sequence * 3 * width, DataType::kFloat16, 3);
    for (size_t i = 0; i < qkv.values.size(); ++i) {
      if (static_cast<int64_t>(i) % (3 * width) < width)
        qkv.values[i] = RoundTo(qkv.values[i] * c.spread, DataType::kFloat16);
    }
    past_capacity = c.capacity > 0 ? c.capacity : c.past;
    present_capacity = c.capacity > 0 ? c.capacity : c.total();
    for (int part = 0; part < 2; ++part) {
      past[part] = Random(c.batch * c.heads * past_capacity * c.head_dim, DataType::kFloat16, 7 + part).values;
      for (int64_t row = 0; row < c.batch * c.heads * past_capacity; ++row) {
        if (row % past_capacity < First(row / past_capacity / c.heads)) continue;
        for (int64_t d = 0; d < c.head_dim; ++d) past[part][row * c.head_dim + d] = std::nan("");
      }
    }
    MakeBias();
  }

  void MakeBias() {
    const int64_t total = c.total();
    bias = {{}, DataType::kFloat16};
    if (c.bias == Bias::kFull) bias = Random(c.batch * c.heads * c.sequence * total, DataType::kFloat16, 13, -2.0, 2.0);
    if (c.bias == Bias::kRow) bias = Random(total, DataType::kFloat16, 13, -2.0, 2.0);
    if (!c.pads()) return;
    // Sequence b is padded by b positions on the left, or with infinities by b thirds of them, and, where it is long,
    // by every 7th position; the last sequence is all padding.
    bias.values.resize(c.batch * c.sequence * total);
    for (size_t i = 0; i < bias.values.size(); ++i) {
      const int64_t b = static_cast<int64_t>(i) / (c.sequence * total), j = static_cast<int64_t>(i) % total;
      const bool padding = j < (c.bias == Bias::kInfinite ? b * total / 3 : b) || (total > 20 && j % 7 == 3) ||
                           (b > 1 && b == c.batch - 1);
      bias.values[i] = !padding ? 0 : c.bias == Bias::kInfinite ? -INFINITY : -30000;
    }
  }

  /// Position of the first new token.
  int64_t First(int64_t b) const { return c.prompt() ? 0 : length[b] - c.sequence; }

  double New(int part, int64_t b, int64_t token, int64_t head, int64_t d) const {
    return qkv.values[((b * c.sequence + token) * 3 + part) * c.heads * c.head_dim + head * c.head_dim + d];
  }

  /// Key (part 0) or value (part 1) at a position below the sequence's length.
  double Cached(int part, int64_t b, int64_t head, int64_t position, int64_t d) const {
    if (position >= First(b)) return New(part + 1, b, position - First(b), head, d);
    return past[part][((b * c.heads + head) * past_capacity + position) * c.head_dim + d];
  }

  double Bias(int64_t b, int64_t head, int64_t token, int64_t position) const {
    const int64_t total = c.total();
    switch (c.bias) {
      case Bias::kNone:
        return 0;
      case Bias::kPadding:
      case Bias::kInfinite:
        return bias.values[(b * c.sequence + token) * total + position];
      case Bias::kFull:
        return bias.values[((b * c.heads + head) * c.sequence + token) * total + position];
      default:
        return bias.values[position];
    }
  }

  std::vector<double> ExpectedPresent(int part) const {
    std::vector<double> present(c.batch * c.heads * present_capacity * c.head_dim, std::nan(""));
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t head = 0; head < c.heads; ++head) {
        for (int64_t position = 0; position < length[b]; ++position) {
          for (int64_t d = 0; d < c.head_dim; ++d)
            present[((b * c.heads + head) * present_capacity + position) * c.head_dim + d] =
                Cached(part, b, head, position, d);
        }
      }
    }
    return present;
  }

  /// Output and its bound. Rounding: half an ulp of the result; weights that are float16 in Tensor Cores (2^-11) and
  /// float32 elsewhere; a score's own rounding, relative to the largest that has weight, which moves its weight as
  /// much.
  void ExpectedOutput(std::vector<double>* output, std::vector<double>* bound) const {
    const double scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    const double weight_error = c.sequence > 4 ? 5.2e-4 : 4e-6;
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t token = 0; token < c.sequence; ++token) {
        for (int64_t head = 0; head < c.heads; ++head) {
          const int64_t visible = std::min(First(b) + token + 1, length[b]);
          std::vector<double> weights(visible);
          double largest = -INFINITY, sum = 0, size = 0;
          for (int64_t j = 0; j < visible; ++j) {
            double dot = 0, magnitude = 0;
            for (int64_t d = 0; d < c.head_dim; ++d) {
              const double product = New(0, b, token, head, d) * Cached(0, b, head, j, d);
              dot += product, magnitude += std::abs(product);
            }
            weights[j] = dot * scale + Bias(b, head, token, j);
            if (weights[j] > largest) size = magnitude * scale + std::abs(weights[j]);
            largest = std::max(largest, weights[j]);
          }
          const bool sees_nothing = largest == -INFINITY;  // a row of zeros
          for (double& weight : weights) sum += weight = sees_nothing ? 0 : std::exp(weight - largest);
          if (sees_nothing) sum = 1, size = 0;
          for (int64_t d = 0; d < c.head_dim; ++d) {
            double value = 0, magnitude = 0;
            for (int64_t j = 0; j < visible; ++j) {
              value += weights[j] / sum * Cached(1, b, head, j, d);
              magnitude += weights[j] / sum * std::abs(Cached(1, b, head, j, d));
            }
            output->push_back(value);
            bound->push_back(HalfUlp(value, DataType::kFloat16) + magnitude * (weight_error + size * 5e-7));
          }
        }
      }
    }
  }
};

void Run(const GpuInfo& gpu, int capability, const Case& c) {
  const std::string what = Describe(c, capability);
  const Problem problem(c);
  Buffer qkv(problem.qkv.bytes()), bias(problem.bias.bytes());
  std::vector<double> lengths;
  for (int64_t length : problem.length) lengths.push_back(static_cast<double>(length - 1));
  Buffer seqlens(Encode(lengths, DataType::kInt32)), fault(std::vector<uint8_t>(4, 0));
  Buffer output(c.batch * c.sequence * c.heads * c.head_dim * 2);
  const int64_t present_bytes = c.batch * c.heads * problem.present_capacity * c.head_dim * 2;
  const int64_t total = c.total();

  cuda::AttentionArgs args;
  args.batch = c.batch, args.sequence = c.sequence, args.heads = c.heads, args.head_dim = c.head_dim;
  SetPacked(qkv.get(), &args);
  args.past_capacity = problem.past_capacity, args.present_capacity = problem.present_capacity;
  args.seqlens = static_cast<const int32_t*>(seqlens.get());
  args.total = total;
  if (c.bias != Bias::kNone) args.bias = bias.get();
  if (c.pads()) args.bias_batch_stride = c.sequence * total, args.bias_query_stride = total;
  if (c.bias == Bias::kFull) {
    args.bias_batch_stride = c.heads * c.sequence * total, args.bias_head_stride = c.sequence * total;
    args.bias_query_stride = total;
  }
  args.output = output.get();
  args.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim)));
  args.compute_capability = capability, args.sm_count = gpu.sm_count, args.splits = c.splits;
  args.fault = static_cast<uint32_t*>(fault.get());
  Buffer workspace(AttentionWorkspaceBytes(args));
  args.workspace = workspace.get();

  std::vector<uint8_t> keys, values;
  const std::vector<uint8_t> first = RunThrice(what, output, [&](Turn& turn) {
    workspace.Poison();
    Buffer past_key(Encode(problem.past[0], DataType::kFloat16)),
        past_value(Encode(problem.past[1], DataType::kFloat16));
    Buffer present_key(present_bytes), present_value(present_bytes);
    if (problem.past_capacity > 0) args.past_key = past_key.get(), args.past_value = past_value.get();
    args.present_key = c.capacity > 0 ? past_key.get() : present_key.get();
    args.present_value = c.capacity > 0 ? past_value.get() : present_value.get();
    args.programmatic = turn.Late({&qkv, &bias, &seqlens, &past_key, &past_value});
    const cudaError_t error = LaunchAttention(args, nullptr);
    if (error != cudaSuccess) return error;
    keys = (c.capacity > 0 ? past_key : present_key).Read();
    values = (c.capacity > 0 ? past_value : present_value).Read();
    return cudaSuccess;
  });
  CompareExact(what + ", keys", Decode(keys, DataType::kFloat16), problem.ExpectedPresent(0));
  CompareExact(what + ", values", Decode(values, DataType::kFloat16), problem.ExpectedPresent(1));
  std::vector<double> expected, bound;
  problem.ExpectedOutput(&expected, &bound);
  Compare(what, Decode(first, DataType::kFloat16), expected, [&](size_t i) { return bound[i]; });
  Expect(fault.Read() == std::vector<uint8_t>(4, 0), what, "reported a fault");
}

/// Lengths that do not fit: clamped and reported, every access inside (compute-sanitizer looks), other sequences right.
void RunHostileLengths(const GpuInfo& gpu, int64_t sequence, bool in_place) {
  const std::string what = "attention, hostile lengths, S=" + std::to_string(sequence);
  Case c;
  c.batch = 2, c.sequence = sequence, c.heads = 3, c.head_dim = 80, c.past = 30, c.capacity = in_place ? 64 : 0;
  const Problem problem(c);
  for (int32_t hostile : {-1, -2147483647 - 1, 2147483647, 64, static_cast<int32_t>(sequence) - 2}) {
    Buffer qkv(problem.qkv.bytes()), output(c.batch * sequence * 240 * 2), fault(std::vector<uint8_t>(4, 0));
    Buffer seqlens(Encode({static_cast<double>(c.total() - 1), static_cast<double>(hostile)}, DataType::kInt32));
    Buffer past_key(Encode(problem.past[0], DataType::kFloat16)),
        past_value(Encode(problem.past[1], DataType::kFloat16));
    Buffer present_key(2 * 240 * c.total() * 2), present_value(2 * 240 * c.total() * 2);
    cuda::AttentionArgs args;
    args.batch = 2, args.sequence = sequence, args.heads = 3, args.head_dim = 80;
    SetPacked(qkv.get(), &args);
    args.past_key = past_key.get(), args.past_value = past_value.get();
    args.present_key = in_place ? past_key.get() : present_key.get();
    args.present_value = in_place ? past_value.get() : present_value.get();
    args.past_capacity = problem.past_capacity, args.present_capacity = problem.present_capacity;
    args.seqlens = static_cast<const int32_t*>(seqlens.get()), args.total = c.total();
    args.output = output.get(), args.scale = static_cast<float>(1 / std::sqrt(80.0));
    args.compute_capability = gpu.compute_capability, args.sm_count = gpu.sm_count;
    args.fault = static_cast<uint32_t*>(fault.get());
    Check(LaunchAttention(args, nullptr), what);
    Check(cudaDeviceSynchronize(), what);
    Expect(fault.Read()[0] == cuda::kFaultLength, what, "reported no fault for " + std::to_string(hostile));
    std::vector<double> expected, bound, got = Decode(output.Read(), DataType::kFloat16);
    problem.ExpectedOutput(&expected, &bound);
    if (hostile < 0) {  // nothing is seen: rows of zeros
      expected.resize(got.size());
      std::fill(expected.begin() + got.size() / 2, expected.end(), 0.0);
      bound.resize(got.size());
      std::fill(bound.begin() + got.size() / 2, bound.end(), 0.0);
    } else {
      got.resize(got.size() / 2), expected.resize(got.size());
    }
    Compare(what, got, expected, [&](size_t i) { return bound[i]; });
  }
}

void RunRefusals(const GpuInfo& gpu) {
  Buffer memory(1 << 16);
  cuda::AttentionArgs good;
  good.batch = 1, good.sequence = 2, good.heads = 2, good.head_dim = 64;
  SetPacked(memory.get(), &good);
  good.present_key = good.present_value = good.output = memory.get();
  good.present_capacity = 8, good.total = 2;
  good.seqlens = static_cast<const int32_t*>(memory.get());
  good.compute_capability = gpu.compute_capability, good.sm_count = gpu.sm_count;
  const auto refuses = [&](const char* what, auto change) {
    cuda::AttentionArgs args = good;
    change(args);
    Expect(LaunchAttention(args, nullptr) == cudaErrorInvalidValue, what, "was not refused");
  };
  refuses("head of 60", [](auto& a) { a.head_dim = 60; });
  refuses("head of 136", [](auto& a) { a.head_dim = 136; });
  refuses("total beyond the cache", [](auto& a) { a.total = 9; });
  refuses("total below the new tokens", [](auto& a) { a.total = 1; });
  refuses("misaligned query", [](auto& a) { a.query = static_cast<const char*>(a.query) + 2; });
  refuses("no lengths", [](auto& a) { a.seqlens = nullptr; });
  refuses("no past", [](auto& a) { a.past_capacity = 8; });
  refuses("two capacities in one buffer", [](auto& a) {
    a.past_key = a.past_value = a.present_key;
    a.past_capacity = 7;
  });
  refuses("stride of 4", [](auto& a) { a.token_stride = 388; });
}

}  // namespace

void RunAttention(const GpuInfo& gpu, Size size) {
  // The code for compute capability 8.0 differs in where the parts of a query meet; it runs on any GPU.
  std::vector<int> capabilities = {80};
  if (gpu.compute_capability >= 90) capabilities.push_back(gpu.compute_capability);
  const bool tiny = size == Size::kTiny;
  for (int capability : capabilities) {
    for (int64_t head_dim :
         tiny ? std::vector<int64_t>{80, 128} : std::vector<int64_t>{8, 16, 24, 32, 64, 80, 96, 104, 128}) {
      for (int splits : {0, 1, 2, 3, 8}) {
        Run(gpu, capability, {2, 1, 3, head_dim, 37, Bias::kPadding, 0, false, splits});
        Run(gpu, capability, {3, 2, 2, head_dim, 70, Bias::kFull, 96, true, splits, 8.0});
      }
      Run(gpu, capability, {3, 70, 2, head_dim, 0, Bias::kPadding, 0, true});
      Run(gpu, capability, {2, 9, 3, head_dim, 61, Bias::kFull, 80, false, 0, 8.0});
      Run(gpu, capability, {3, 70, 2, head_dim, 0, Bias::kInfinite, 0, true});
      Run(gpu, capability, {3, 1, 2, head_dim, 150, Bias::kInfinite, 0});
      if (tiny) continue;
      Run(gpu, capability, {3, 33, 2, head_dim, 300, Bias::kInfinite, 400, true, 0, 4.0});
      for (int splits : {1, 2, 8}) Run(gpu, capability, {3, 2, 2, head_dim, 500, Bias::kInfinite, 512, true, splits});
      Run(gpu, capability, {2, 33, 2, head_dim, 100, Bias::kRow, 0, true, 0, 4.0});
      Run(gpu, capability, {1, 1, 1, head_dim, 0, Bias::kNone, 0});
      Run(gpu, capability, {1, 5, 1, head_dim, 1, Bias::kNone, 6});
    }
    if (tiny) continue;
    for (int splits : {0, 1, 2, 4, 5, 8, 64}) {
      Run(gpu, capability, {2, 1, 4, 128, 1500, Bias::kPadding, 2048, true, splits, 4.0});
      Run(gpu, capability, {9, 1, 2, 64, 255, Bias::kRow, 0, true, splits});
    }
    Run(gpu, capability, {40, 1, 12, 64, 130, Bias::kPadding, 200, true});
  }
  const int capability = gpu.compute_capability;
  for (int64_t sequence :
       tiny ? std::vector<int64_t>{3, 65} : std::vector<int64_t>{3, 4, 5, 16, 17, 63, 64, 65, 128, 200}) {
    Run(gpu, capability, {2, sequence, 2, 96, 0, Bias::kNone, 0});
    Run(gpu, capability, {2, sequence, 2, 128, 0, Bias::kPadding, 256, true});
    Run(gpu, capability, {1, sequence, 2, 64, 77, Bias::kPadding, 0});
  }
  for (int64_t sequence : {1, 6}) {
    for (bool in_place : {false, true}) RunHostileLengths(gpu, sequence, in_place);
  }
  RunRefusals(gpu);
}

namespace {

cuda::AttentionArgs TimedArgs(const GpuInfo& gpu, int64_t batch, int64_t sequence, int64_t total, const Buffer& qkv,
                              const Buffer& bias, const Buffer& output, const Buffer& seqlens) {
  cuda::AttentionArgs args;
  args.batch = batch, args.sequence = sequence, args.heads = 56, args.head_dim = 128;
  SetPacked(qkv.get(), &args);
  args.past_capacity = args.present_capacity = args.total = total;
  args.seqlens = static_cast<const int32_t*>(seqlens.get());
  args.bias = bias.get(), args.bias_batch_stride = sequence * total, args.bias_query_stride = total;
  args.output = output.get(), args.scale = 0.088388f;
  args.compute_capability = gpu.compute_capability, args.sm_count = gpu.sm_count;
  return args;
}

void TimeCase(const GpuInfo& gpu, int64_t batch, int64_t sequence, int64_t total) {
  constexpr int64_t kHeads = 56, kHeadDim = 128;
  const int64_t cache_bytes = batch * kHeads * total * kHeadDim * 2;
  const int caches = static_cast<int>(std::max<int64_t>(1, (int64_t{1} << 29) / (2 * cache_bytes)));
  Buffer cache(2 * caches * cache_bytes), qkv(batch * sequence * 3 * kHeads * kHeadDim * 2);
  Buffer bias(batch * sequence * total * 2), output(batch * sequence * kHeads * kHeadDim * 2);
  Check(cudaMemset(cache.get(), 0, 2 * caches * cache_bytes), "zeros");
  Check(cudaMemset(qkv.get(), 0, batch * sequence * 3 * kHeads * kHeadDim * 2), "zeros");
  Check(cudaMemset(bias.get(), 0, batch * sequence * total * 2), "zeros");
  Buffer seqlens(Encode(std::vector<double>(batch, static_cast<double>(total - 1)), DataType::kInt32));
  cuda::AttentionArgs args = TimedArgs(gpu, batch, sequence, total, qkv, bias, output, seqlens);
  const auto launch = [&](int i) {
    char* const keys = static_cast<char*>(cache.get()) + i % caches * 2 * cache_bytes;
    args.past_key = args.present_key = keys, args.past_value = args.present_value = keys + cache_bytes;
    return LaunchAttention(args, nullptr);
  };
  Timer timer;
  for (int splits : sequence == 1 ? std::vector<int>{0, 1, 2, 4, 8, -4} : std::vector<int>{0}) {
    args.splits = std::abs(splits);
    args.compute_capability = splits < 0 ? 80 : gpu.compute_capability;
    Buffer workspace(AttentionWorkspaceBytes(args));
    args.workspace = workspace.get();
    for (bool programmatic : {false, true}) {
      args.programmatic = programmatic && gpu.compute_capability >= 90;
      const double time = timer.Run(sequence == 1 ? 40 : 10, launch);
      const double flops = 4.0 * batch * kHeads * kHeadDim * sequence * (total - sequence + (sequence + 1) / 2.0);
      std::printf("%3lld %5lld %5lld %6d %3d %9.2f us %8.0f GB/s %6.1f TFLOP/s\n", static_cast<long long>(batch),
                  static_cast<long long>(sequence), static_cast<long long>(total), splits, programmatic, time,
                  2.0 * cache_bytes / time * 1e-3, flops / time * 1e-6);
    }
  }
}

/// Reads everything and keeps nothing: what the memory gives at best.
__global__ void ReadStream(const uint4* from, int64_t count, uint32_t* never) {
  uint32_t bits = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const uint4 value = from[i];
    bits |= value.x | value.y | value.z | value.w;
  }
  if (bits != 0) *never = bits;  // the memory is zeros
}

void TimeStream(const GpuInfo& gpu) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  Buffer memory(kBytes), never(4);
  Check(cudaMemset(memory.get(), 0, kBytes), "zeros");
  Timer timer;
  const double time = timer.Run(5, [&](int) {
    ReadStream<<<gpu.sm_count * 16, 512>>>(static_cast<const uint4*>(memory.get()), kBytes / 16,
                                           static_cast<uint32_t*>(never.get()));
    return cudaGetLastError();
  });
  std::printf("read-only stream of 2 GiB: %.0f GB/s\n", kBytes / time * 1e-3);
}

}  // namespace

void TimeAttention(const GpuInfo& gpu) {
  TimeStream(gpu);
  std::printf("attention, 56 heads x 128, bias [B, 1, S, T], cache in place; splits: 0 chosen, < 0 as on sm_80\n");
  std::printf("  B     S     T splits pdl\n");
  for (int64_t batch : {1, 8, 32}) {
    for (int64_t total : {256, 2048}) TimeCase(gpu, batch, 1, total);
  }
  for (int64_t batch : {1, 8}) {
    for (int64_t sequence : {512, 2048}) TimeCase(gpu, batch, sequence, sequence);
  }
}

}  // namespace flashllm::test
