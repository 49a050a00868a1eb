// Each way in which a file can lie about a packed weight.
#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/format.h"
#include "tests/native/sparse-matmul/random_weights.h"

using namespace flashllm;
using namespace flashllm::test;

namespace {

constexpr int64_t kRows = 9, kColumns = 70;

OwnedPackedWeight Sample() {
  return PackDense(RandomDense(kRows, kColumns, 0.5, Pattern::kUniform, 3), kRows, kColumns, ValueType::kFloat16);
}

// What is found where the parts come in pieces that cut rows, the last first.
std::string ErrorInPieces(const PackedWeightClaim& claim) {
  const std::string error = CheckOffsets(claim);
  if (!error.empty()) return error;
  static constexpr int64_t kPiece = 24;
  PartsCheck check(claim);
  const auto each = [](int64_t bytes, const auto& give) {
    for (int64_t at = (bytes - 1) / kPiece * kPiece; at >= 0; at -= kPiece)
      give(at, std::min<int64_t>(kPiece, bytes - at));
  };
  each(claim.values_length * SizeOf(claim.value_type),
       [&](int64_t at, int64_t length) { check.Values(at, static_cast<const uint8_t*>(claim.values) + at, length); });
  each(claim.bitmap_rows * claim.bitmap_cols,
       [&](int64_t at, int64_t length) { check.Bitmap(at, claim.bitmap + at, length); });
  return check.Finish();
}

// The message for a weight after `change`; the checksum is made right again, so that it is not what gives the lie away.
std::string ErrorAfter(const std::function<void(OwnedPackedWeight*)>& change) {
  OwnedPackedWeight weight = Sample();
  change(&weight);
  weight.checksum = Checksum(weight.view);
  PackedWeight out;
  const std::string error = Validate(ClaimOf(weight), true, &out);
  CHECK((error.empty() || out.bitmap == nullptr));
  CHECK(ErrorInPieces(ClaimOf(weight)) == error);
  return error;
}

std::string ErrorOfClaim(const std::function<void(PackedWeightClaim*)>& change) {
  const OwnedPackedWeight weight = Sample();
  PackedWeightClaim claim = ClaimOf(weight);
  change(&claim);
  PackedWeight out;
  const std::string error = Validate(claim, true, &out);
  CHECK((error.empty() || out.bitmap == nullptr));
  return error;
}

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a weight that tells the truth is accepted") {
  const OwnedPackedWeight weight = Sample();
  PackedWeight out;
  CHECK(Validate(ClaimOf(weight), true, &out) == "");
  CHECK(out.nnz == weight.view.nnz);
  CHECK(out.bitmap == weight.bitmap.data());
  CHECK(out.values == weight.values.data());
  CHECK(out.in_features == kColumns);
}

TEST_CASE("sizes follow docs/format.md") {
  CHECK(BitmapRowBytes(1) == 8);
  CHECK(BitmapRowBytes(64) == 8);
  CHECK(BitmapRowBytes(65) == 16);
  CHECK(ValuesLength(0) == 64);
  CHECK(ValuesLength(32) == 64);
  CHECK(ValuesLength(33) == 128);
  // The share of dense float16 bytes on OPT's shapes.
  const double limits[][2] = {{0.5, 0.575}, {0.7, 0.375}, {0.8, 0.275}, {0.9, 0.175}};
  const int64_t shapes[][2] = {{768, 768},   {3072, 768},   {768, 3072},   {6144, 2048},
                               {2048, 8192}, {21504, 7168}, {12288, 49152}};
  for (const auto& limit : limits) {
    for (const auto& shape : shapes) {
      const int64_t elements = shape[0] * shape[1];
      const int64_t nnz = elements - static_cast<int64_t>(limit[0] * static_cast<double>(elements));
      const int64_t bytes = shape[0] * BitmapRowBytes(shape[1]) + 4 * (shape[0] + 1) + 2 * ValuesLength(nnz);
      CHECK(static_cast<double>(bytes) / static_cast<double>(2 * elements) <= limit[1]);
    }
  }
}

TEST_CASE("every attribute and shape that lies is refused") {
  const int64_t max = std::numeric_limits<int64_t>::max(), min = std::numeric_limits<int64_t>::min();
  for (int64_t version : {int64_t{0}, int64_t{2}, int64_t{-1}, max}) {
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->format_version = version; }), "format_version"));
  }
  for (int64_t wrong : {int64_t{0}, int64_t{-1}, kMaxFeatures + 1, max, min}) {
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->out_features = wrong; }), "out_features"));
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->in_features = wrong; }), "in_features"));
  }
  for (int64_t wrong : {int64_t{-1}, kMaxNnz + 1, max, min}) {
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->nnz = wrong; }), "nnz"));
  }
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->nnz = kRows * kColumns + 1; }), "more than"));
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->nnz += 1; }), "nnz"));
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->nnz -= 1; }), "row_offsets"));
  // Dimensions at their limits, whose products must not overflow, with parts that cannot match.
  CHECK(
      Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->in_features = c->out_features = kMaxFeatures; }), "bitmap"));
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->out_features += 1; }), "bitmap"));
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->in_features = 129; }), "bitmap"));
  for (int64_t wrong : {int64_t{-1}, int64_t{0}, kRows - 1, kRows + 1, max, min}) {
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->bitmap_rows = wrong; }), "bitmap"));
  }
  for (int64_t wrong : {int64_t{-1}, int64_t{0}, int64_t{15}, int64_t{17}, max}) {
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->bitmap_cols = wrong; }), "bitmap"));
  }
  for (int64_t wrong : {int64_t{-1}, int64_t{0}, kRows, kRows + 2, max}) {
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->row_offsets_length = wrong; }), "row_offsets"));
  }
  const int64_t length = ClaimOf(Sample()).values_length;
  for (int64_t wrong : {int64_t{-1}, int64_t{0}, length - 1, length + 1, length + kValuesMultiple, max}) {
    CHECK(Contains(ErrorOfClaim([&](PackedWeightClaim* c) { c->values_length = wrong; }), "values"));
  }
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->value_type = static_cast<ValueType>(7); }), "type"));
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->bitmap = nullptr; }), "bitmap has no data"));
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->row_offsets = nullptr; }), "row_offsets has no data"));
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->values = nullptr; }), "values has no data"));
}

TEST_CASE("offsets that lie are refused") {
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[0] = 1; }), "row_offsets[0]"));
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[0] = -1; }), "row_offsets[0]"));
  CHECK(
      Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[4] = w->row_offsets[3] - 1; }), "row_offsets[4]"));
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[4] = std::numeric_limits<int32_t>::min(); }),
                 "row_offsets[4]"));
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[4] = std::numeric_limits<int32_t>::max(); }),
                 "row_offsets[4]"));
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[4] += 1; }), "bits set"));
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[kRows] += 1; }), "row_offsets[9]"));
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) { w->row_offsets[kRows] -= 1; }), "row_offsets ends with"));
}

TEST_CASE("a bitmap that lies is refused") {
  for (int64_t row : {int64_t{0}, int64_t{5}, kRows - 1}) {
    CHECK(
        Contains(ErrorAfter([&](OwnedPackedWeight* w) { w->bitmap[static_cast<size_t>(16 * row)] ^= 4; }), "bits set"));
    for (int k : {70, 71, 72, 100, 127}) {
      CHECK(Contains(ErrorAfter([&](OwnedPackedWeight* w) {
                       w->bitmap[static_cast<size_t>(16 * row + k / 8)] ^= static_cast<uint8_t>(1 << (k % 8));
                     }),
                     "past in_features"));
    }
  }
}

TEST_CASE("of several errors the first is told") {
  CHECK(Contains(ErrorAfter([](OwnedPackedWeight* w) {
                   for (size_t row : {2, 5, 7}) w->bitmap[16 * row] ^= 4;
                   w->values.back() = 1;
                 }),
                 "bitmap row 2"));
}

TEST_CASE("values after the last one must be zero") {
  const int64_t nnz = Sample().view.nnz;
  for (int64_t at : {nnz * 2, nnz * 2 + 1, ValuesLength(nnz) * 2 - 1}) {
    CHECK(Contains(ErrorAfter([&](OwnedPackedWeight* w) { w->values[static_cast<size_t>(at)] = 1; }), "past nnz"));
  }
}

TEST_CASE("one flipped bit anywhere breaks the checksum") {
  OwnedPackedWeight weight = Sample();
  const PackedWeightClaim claim = ClaimOf(weight);
  PackedWeight out;
  for (size_t i = 0; i < static_cast<size_t>(weight.view.nnz) * 2; i += 7) {
    weight.values[i] ^= 0x10;
    CHECK(Contains(Validate(claim, true, &out), "checksum"));
    CHECK(Validate(claim, false, &out) == "");
    weight.values[i] ^= 0x10;
  }
  CHECK(Contains(ErrorOfClaim([](PackedWeightClaim* c) { c->checksum ^= 1; }), "checksum"));
}

TEST_CASE("parts are read at any address") {
  const OwnedPackedWeight weight = Sample();
  PackedWeightClaim claim = ClaimOf(weight);
  // New allocations of exactly these sizes, so that a sanitizer sees a read past the end.
  const auto shift = [](const void* data, size_t bytes) {
    std::unique_ptr<uint8_t[]> copy(new uint8_t[bytes + 1]);
    std::memcpy(copy.get() + 1, data, bytes);
    return copy;
  };
  const auto bitmap = shift(weight.bitmap.data(), weight.bitmap.size());
  const auto offsets = shift(weight.row_offsets.data(), weight.row_offsets.size() * 4);
  const auto values = shift(weight.values.data(), weight.values.size());
  const uint8_t* offsets_at = offsets.get() + 1;
  claim.bitmap = bitmap.get() + 1;
  std::memcpy(&claim.row_offsets, &offsets_at, sizeof(offsets_at));
  claim.values = values.get() + 1;
  PackedWeight out;
  CHECK(Validate(claim, true, &out) == "");
}
