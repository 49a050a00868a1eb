// Which layouts a session's weights may have, by what they would take of the GPU's memory: host arithmetic, without a
// GPU.
#include "provider/ep/cuda/weight_memory.h"

#include <cstdint>
#include <string>
#include <utility>

#include "doctest/doctest.h"

using namespace flashllm;
using namespace flashllm::cuda;
using namespace flashllm::ep;

namespace {

constexpr int64_t kGb = 1000000000;

DeviceInfo H200() {
  static int encode;
  DeviceInfo device;
  device.compute_capability = 90;
  device.sm_count = 132;
  device.shared_bytes = 227 << 10;
  device.clusters[0] = 132, device.clusters[1] = 66, device.clusters[2] = 30;
  device.memory_gbs = 4800;
  device.encode_tensor_map = &encode;
  return device;
}

PackedWeight Weight(int64_t in, int64_t out, double density, ValueType type = ValueType::kFloat16) {
  PackedWeight weight;
  weight.in_features = in;
  weight.out_features = out;
  weight.nnz = static_cast<int64_t>(density * static_cast<double>(in * out));
  weight.value_type = type;
  return weight;
}

/// The packed weights of an OPT model.
WeightMemory Opt(int64_t layers, int64_t width, double density, int expected_n = 8) {
  WeightMemory memory;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const std::string name = std::to_string(layer);
    memory.Add("qkv" + name, Weight(width, 3 * width, density), H200(), expected_n, ElementType::kFloat16);
    memory.Add("o" + name, Weight(width, width, density), H200(), expected_n, ElementType::kFloat16);
    memory.Add("fc1" + name, Weight(width, 4 * width, density), H200(), expected_n, ElementType::kFloat16);
    memory.Add("fc2" + name, Weight(4 * width, width, density), H200(), expected_n, ElementType::kFloat16);
  }
  return memory;
}

}  // namespace

TEST_CASE("a session has the fastest layouts where they take at most half of what compact ones leave free") {
  const WeightMemory memory = Opt(1, 7168, 0.2);
  const double more = memory.fastest() - memory.compact();
  REQUIRE(more > 0);
  const auto enough = static_cast<int64_t>(memory.compact() + 2 * more) + 1;
  CHECK(FastestFit(memory, {}, enough));
  CHECK_FALSE(FastestFit(memory, {}, enough - 2));
  CHECK_FALSE(FastestFit(memory, {}, 0));
  // Copies that are asked for count before, up to one of every weight.
  CHECK_FALSE(FastestFit(memory, {kGb / 2, 0}, enough));
  CHECK(FastestFit(memory, {kGb / 2, 0}, enough + kGb / 2));
  const auto dense = static_cast<int64_t>(memory.dense());
  CHECK(FastestFit(memory, {1000 * kGb, 0}, enough + dense));
  CHECK_FALSE(FastestFit(memory, {1000 * kGb, 0}, enough + dense - 2));
  const auto jagged = static_cast<int64_t>(memory.jagged());
  CHECK(jagged > 0.95 * memory.compact());
  CHECK(jagged < 1.05 * memory.compact());
  CHECK_FALSE(FastestFit(memory, {0, kGb / 20}, enough));
  CHECK(FastestFit(memory, {0, 1000 * kGb}, enough + jagged + 1));
  CHECK_FALSE(FastestFit(memory, {0, 1000 * kGb}, enough + jagged - 2));
}

TEST_CASE("on one H200, OPT-30B at 80 % has the fastest layouts, OPT-175B only for up to 16 sequences") {
  const int64_t free = 145 * kGb;
  const WeightMemory small = Opt(48, 7168, 0.2), large = Opt(96, 12288, 0.2), many = Opt(96, 12288, 0.2, 32);
  CHECK(small.fastest() - small.compact() > 3e9);
  CHECK(FastestFit(small, {}, free));
  CHECK(large.compact() < 100e9);
  CHECK(FastestFit(large, {}, free));
  CHECK(many.fastest() > 135e9);
  CHECK_FALSE(FastestFit(many, {}, free));
}

TEST_CASE("jagged copies count of weights that can have one and are not laid out so already") {
  const auto jagged = [](int expected_n, double density, ValueType type, ElementType x) {
    PackedWeight weight = Weight(4096, 4096, density);
    weight.value_type = type;
    WeightMemory memory;
    memory.Add("w", weight, H200(), expected_n, x);
    return memory.jagged();
  };
  const double copy = jagged(8, 0.2, ValueType::kFloat16, ElementType::kFloat16);
  CHECK(copy > 0.5 * 4096 * 4096);
  CHECK(copy < 0.6 * 4096 * 4096);
  CHECK(jagged(0, 0.2, ValueType::kFloat32, ElementType::kFloat16) == copy);
  CHECK(jagged(1, 0.2, ValueType::kFloat16, ElementType::kFloat16) == 0);
  CHECK(jagged(8, 0.2, ValueType::kBFloat16, ElementType::kFloat16) == 0);
  CHECK(jagged(8, 0.2, ValueType::kFloat16, ElementType::kFloat32) == 0);
}

TEST_CASE("where the fastest layouts are compact, nothing hangs on the memory") {
  const WeightMemory memory = Opt(1, 7168, 0.5);
  CHECK(memory.fastest() == memory.compact());
  CHECK(FastestFit(memory, {}, 0));
  CHECK(FastestFit(WeightMemory(), {kGb, 0}, 0));
  WeightMemory parts;  // which X of float32 leaves as they lie
  parts.Add("a", Weight(4096, 4096, 0.1), H200(), 0, ElementType::kFloat32);
  CHECK(parts.compact() > 4096 * 4096 * (1.0 / 8 + 0.2));
  CHECK(parts.fastest() == parts.compact());
}

TEST_CASE("a weight that nodes share counts once, and one that cannot be, not at all") {
  WeightMemory memory;
  memory.Add("a", Weight(4096, 4096, 0.1), H200(), 0, ElementType::kFloat16);
  const double fastest = memory.fastest(), compact = memory.compact();
  CHECK(fastest > compact);
  const int64_t nnz = memory.nnz();
  CHECK(nnz == Weight(4096, 4096, 0.1).nnz);
  CHECK(memory.dense() == 2.0 * 4096 * 4096);
  memory.Add("a", Weight(4096, 4096, 0.1), H200(), 0, ElementType::kFloat16);
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{0, 64}, {64, -1}, {INT64_MAX, 64}, {64, INT64_MAX}}) {
    PackedWeight weight;
    weight.in_features = in;
    weight.out_features = out;
    memory.Add("wrong", weight, H200(), 0, ElementType::kFloat16);
  }
  for (int64_t wrong : {int64_t{-1}, int64_t{64 * 64 + 1}, INT64_MAX}) {
    PackedWeight weight = Weight(64, 64, 0);
    weight.nnz = wrong;
    memory.Add("wrong", weight, H200(), 0, ElementType::kFloat16);
  }
  CHECK(memory.fastest() == fastest);
  CHECK(memory.compact() == compact);
  CHECK(memory.nnz() == nnz);
  memory.Add("b", Weight(4096, 4096, 0.1), H200(), 0, ElementType::kFloat16);
  CHECK(memory.compact() == 2 * compact);
  CHECK(memory.nnz() == 2 * nnz);
}

TEST_CASE("float32 values are expected to be laid out as float16") {
  WeightMemory half, single;
  half.Add("a", Weight(4096, 4096, 0.1), H200(), 0, ElementType::kFloat16);
  single.Add("a", Weight(4096, 4096, 0.1, ValueType::kFloat32), H200(), 0, ElementType::kFloat16);
  CHECK(single.fastest() == half.fastest());
  CHECK(single.compact() == half.compact());
}
