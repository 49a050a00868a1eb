#include <pthread.h>
#include <unistd.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/float_bits.h"
#include "tests/native/sparse-matmul/random_weights.h"

using namespace flashllm;
using namespace flashllm::test;

namespace {

const ValueType kTypes[] = {ValueType::kFloat32, ValueType::kFloat16, ValueType::kBFloat16};

// A file in a folder of its own, gone at the end of a test.
class TemporaryFile {
 public:
  TemporaryFile() {
    char pattern[] = "/tmp/flashllm-test-XXXXXX";
    folder_ = mkdtemp(pattern);
    path_ = folder_ + "/data";
  }
  ~TemporaryFile() {
    std::remove(path_.c_str());
    rmdir(folder_.c_str());
  }
  const std::string& path() const { return path_; }

  void Write(const std::vector<uint8_t>& bytes) const {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  std::vector<uint8_t> Read() const {
    std::ifstream file(path_, std::ios::binary);
    return std::vector<uint8_t>(std::istreambuf_iterator<char>(file), {});
  }

 private:
  std::string folder_, path_;
};

std::vector<uint8_t> Encode(const std::vector<float>& values, ValueType type) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(SizeOf(type)));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == ValueType::kFloat16 ? FloatToHalf(values[i]) : FloatToBFloat16(values[i]);
    if (type == ValueType::kFloat32) {
      std::memcpy(bytes.data() + 4 * i, &values[i], 4);
    } else {
      std::memcpy(bytes.data() + 2 * i, &half, 2);
    }
  }
  return bytes;
}

std::vector<float> Transposed(const std::vector<float>& dense, int64_t rows, int64_t columns) {
  std::vector<float> out(dense.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k)
      out[static_cast<size_t>(k * rows + r)] = dense[static_cast<size_t>(r * columns + k)];
  }
  return out;
}

std::vector<float> Unpacked(const PackedWeight& weight) {
  std::vector<float> out(static_cast<size_t>(weight.out_features * weight.in_features));
  UnpackWeight(weight, out.data());
  return out;
}

}  // namespace

TEST_CASE("every type, layout, shape and pattern survives packing") {
  const int64_t shapes[][2] = {{1, 1}, {1, 64}, {3, 63}, {5, 65}, {17, 200}, {130, 129}};
  for (const auto& shape : shapes) {
    for (Pattern pattern : AllPatterns()) {
      const std::vector<float> dense = RandomDense(shape[0], shape[1], 0.6, pattern, 11);
      for (ValueType source : kTypes) {
        const std::vector<uint8_t> straight = Encode(dense, source);
        const std::vector<uint8_t> transposed = Encode(Transposed(dense, shape[0], shape[1]), source);
        for (ValueType target : kTypes) {
          CAPTURE(NameOf(pattern));
          const OwnedPackedWeight a = PackInMemory({InMemory(straight.data(), source, shape[0], shape[1])}, {}, target);
          PackedWeight view;
          REQUIRE(Validate(ClaimOf(a), true, &view) == "");
          REQUIRE(Unpacked(view) == dense);
          const OwnedPackedWeight b =
              PackInMemory({InMemory(transposed.data(), source, shape[0], shape[1], Layout::kInOut)}, {}, target);
          REQUIRE(a.bitmap == b.bitmap);
          REQUIRE(a.row_offsets == b.row_offsets);
          REQUIRE(a.values == b.values);
          REQUIRE(a.checksum == b.checksum);
        }
      }
    }
  }
}

TEST_CASE("a file is packed like memory, on any number of threads, at the offsets asked for") {
  // Some five strips in the transposed layout.
  const int64_t rows = 3001, columns = 1111 * 2;
  const std::vector<float> dense = RandomDense(rows, columns, 0.7, Pattern::kUniform, 12);
  const OwnedPackedWeight expected = PackDense(dense, rows, columns, ValueType::kFloat16);
  const std::vector<float> transposed = Transposed(dense, rows, columns);
  std::vector<uint8_t> source = {1, 2, 3, 4, 5};  // an offset that is no multiple of anything
  const std::vector<uint8_t> encoded = Encode(transposed, ValueType::kFloat32);
  source.insert(source.end(), encoded.begin(), encoded.end());
  const TemporaryFile in;
  in.Write(source);
  for (int threads : {1, 3}) {
    const TemporaryFile out;
    WeightSegment segment = InMemory(nullptr, ValueType::kFloat32, rows, columns, Layout::kInOut);
    segment.path = in.path();
    segment.offset = 5;
    PackDestination destination;
    destination.path = out.path();
    destination.bitmap_offset = 64;
    destination.row_offsets_offset = destination.bitmap_offset + static_cast<int64_t>(expected.bitmap.size());
    destination.values_offset = destination.row_offsets_offset + static_cast<int64_t>(expected.row_offsets.size()) * 4;
    PackControl control;
    control.threads = threads;
    int64_t last_progress = 0;
    control.progress = [&](int64_t bytes) {
      CHECK(bytes >= last_progress);
      last_progress = bytes;
    };
    const PackResult result = PackWeight({segment}, {}, ValueType::kFloat16, destination, control);
    CHECK(last_progress == rows * columns * 4);
    CHECK(result.nnz == expected.view.nnz);
    CHECK(result.checksum == expected.checksum);
    CHECK(Checksum(expected.view) == expected.checksum);
    const std::vector<uint8_t> bytes = out.Read();
    REQUIRE(bytes.size() == static_cast<size_t>(destination.values_offset) + expected.values.size());
    CHECK(std::memcmp(&bytes[64], expected.bitmap.data(), expected.bitmap.size()) == 0);
    CHECK(std::memcmp(&bytes[static_cast<size_t>(destination.row_offsets_offset)], expected.row_offsets.data(),
                      expected.row_offsets.size() * 4) == 0);
    CHECK(std::memcmp(&bytes[static_cast<size_t>(destination.values_offset)], expected.values.data(),
                      expected.values.size()) == 0);
  }
}

TEST_CASE("a weight is packed by the threads that there are, where the system has no place for more") {
  const int64_t rows = 3001, columns = 1111 * 2;
  const std::vector<float> dense = RandomDense(rows, columns, 0.7, Pattern::kUniform, 12);
  const OwnedPackedWeight expected = PackDense(dense, rows, columns, ValueType::kFloat16);
  const std::vector<float> transposed = Transposed(dense, rows, columns);
  const TemporaryFile out;
  PackDestination destination;
  destination.path = out.path();
  destination.row_offsets_offset = static_cast<int64_t>(expected.bitmap.size());
  destination.values_offset = destination.row_offsets_offset + static_cast<int64_t>(expected.row_offsets.size()) * 4;
  PackControl control;
  control.threads = 3;
  pthread_attr_t usual, huge;
  REQUIRE(pthread_getattr_default_np(&usual) == 0);
  REQUIRE(pthread_getattr_default_np(&huge) == 0);
  REQUIRE(pthread_attr_setstacksize(&huge, size_t{1} << 46) == 0);  // of no thread that the system could start
  REQUIRE(pthread_setattr_default_np(&huge) == 0);
  PackResult result;
  try {
    CHECK_THROWS_AS(std::thread([] {}).join(), std::system_error);
    result = PackWeight({InMemory(transposed.data(), ValueType::kFloat32, rows, columns, Layout::kInOut)}, {},
                        ValueType::kFloat16, destination, control);
  } catch (const std::system_error& error) {
    FAIL_CHECK(std::string(error.what()));
  }
  pthread_setattr_default_np(&usual);
  pthread_attr_destroy(&huge);
  pthread_attr_destroy(&usual);
  CHECK(result.nnz == expected.view.nnz);
  CHECK(result.checksum == expected.checksum);
}

TEST_CASE("segments of different types and layouts join along out_features") {
  const int64_t columns = 77;
  const std::vector<float> q = RandomDense(10, columns, 0.5, Pattern::kUniform, 1);
  const std::vector<float> k = RandomDense(3, columns, 0.5, Pattern::kUniform, 2);
  const std::vector<float> v = RandomDense(21, columns, 0.5, Pattern::kUniform, 3);
  std::vector<float> all = q;
  all.insert(all.end(), k.begin(), k.end());
  all.insert(all.end(), v.begin(), v.end());
  const std::vector<uint8_t> k_bytes = Encode(Transposed(k, 3, columns), ValueType::kFloat16);
  const std::vector<uint8_t> v_bytes = Encode(v, ValueType::kBFloat16);
  const OwnedPackedWeight packed =
      PackInMemory({InMemory(q.data(), ValueType::kFloat32, 10, columns),
                    InMemory(k_bytes.data(), ValueType::kFloat16, 3, columns, Layout::kInOut),
                    InMemory(v_bytes.data(), ValueType::kBFloat16, 21, columns)},
                   {}, ValueType::kFloat32);
  CHECK(packed.view.out_features == 34);
  CHECK(Unpacked(packed.view) == all);
}

TEST_CASE("analysis says which types hold every value exactly") {
  const auto analyze = [](std::vector<float> values) {
    return AnalyzeWeight({InMemory(values.data(), ValueType::kFloat32, 1, static_cast<int64_t>(values.size()))}, {});
  };
  CHECK(analyze({1, -0.5f, 0}).fits_float16);
  CHECK(analyze({1, -0.5f, 0}).fits_bfloat16);
  CHECK_FALSE(analyze({1 + 1.0f / 1024}).fits_bfloat16);
  CHECK(analyze({1 + 1.0f / 1024}).fits_float16);
  CHECK_FALSE(analyze({1 + 1.0f / 2048}).fits_float16);
  CHECK_FALSE(analyze({1e30f}).fits_float16);
  CHECK_FALSE(analyze({1e-30f}).fits_float16);
  CHECK(analyze({std::ldexp(1.0f, 100)}).fits_bfloat16);
  CHECK(analyze({std::ldexp(1.0f, -24)}).fits_float16);  // the least subnormal
  const WeightAnalysis zeros = analyze({0.0f, -0.0f, 1});
  CHECK(zeros.zeros == 2);
  CHECK(zeros.nnz == 1);
}

TEST_CASE("analysis agrees with the conversions on every float16 and its neighbours") {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const float half = HalfToFloat(static_cast<uint16_t>(bits));
    for (float value : {half, -half, std::nextafterf(half, 0.0f), std::nextafterf(half, 1e9f)}) {
      const bool fits = HalfToFloat(FloatToHalf(value)) == value;
      const WeightAnalysis analysis = AnalyzeWeight({InMemory(&value, ValueType::kFloat32, 1, 1)}, {});
      REQUIRE(analysis.fits_float16 == fits);
      REQUIRE(analysis.fits_bfloat16 == (BFloat16ToFloat(FloatToBFloat16(value)) == value));
    }
  }
}

TEST_CASE("values are scaled, then tested for zero") {
  const std::vector<float> dense = {1, -2, 0, 1e-30f};
  WeightOptions options;
  options.scale = 0.5f;
  OwnedPackedWeight packed =
      PackInMemory({InMemory(dense.data(), ValueType::kFloat32, 2, 2)}, options, ValueType::kFloat32);
  CHECK(Unpacked(packed.view) == std::vector<float>{0.5f, -1, 0, 0.5e-30f});
  options.scale = 0;
  packed = PackInMemory({InMemory(dense.data(), ValueType::kFloat32, 2, 2)}, options, ValueType::kFloat32);
  CHECK(packed.view.nnz == 0);
}

TEST_CASE("what cannot be packed is refused with a reason") {
  const auto message = [](const WeightSegment& segment, ValueType type = ValueType::kFloat16) {
    try {
      PackInMemory({segment}, {}, type);
    } catch (const PackError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const std::vector<float> large = {1, 70000};
  CHECK(message(InMemory(large.data(), ValueType::kFloat32, 1, 2)).find("overflows float16") != std::string::npos);
  CHECK(message(InMemory(large.data(), ValueType::kFloat32, 1, 2), ValueType::kBFloat16) == "no error");
  WeightSegment missing = InMemory(nullptr, ValueType::kFloat32, 2, 2);
  missing.path = "/nonexistent/weights";
  CHECK(message(missing).find("cannot open /nonexistent/weights") != std::string::npos);
  const TemporaryFile file;
  file.Write(std::vector<uint8_t>(15));
  missing.path = file.path();
  CHECK(message(missing).find("expected 16 bytes") != std::string::npos);
  missing.offset = 1000;
  CHECK(message(missing).find("15 in all") != std::string::npos);
  CHECK(message(InMemory(large.data(), ValueType::kFloat32, 0, 2)).find("bad weight segment") != std::string::npos);
  CHECK(message(InMemory(large.data(), ValueType::kFloat32, 1, kMaxFeatures + 1)).find("bad weight segment") !=
        std::string::npos);
  CHECK_THROWS_AS(PackInMemory({}, {}, ValueType::kFloat16), PackError);
  CHECK_THROWS_AS(PackInMemory({InMemory(large.data(), ValueType::kFloat32, 1, 2),
                                InMemory(large.data(), ValueType::kFloat32, 2, 1)},
                               {}, ValueType::kFloat16),
                  PackError);
  std::atomic<bool> cancelled{true};
  PackControl control;
  control.cancelled = &cancelled;
  CHECK_THROWS_AS(AnalyzeWeight({InMemory(large.data(), ValueType::kFloat32, 1, 2)}, {}, control), PackError);
}
