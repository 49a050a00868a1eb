#include "provider/ep/cuda/device_weight.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/prefill.h"
#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/upload.h"
#include "provider/ep/cuda/workers.h"

namespace flashllm::ep {
namespace {

/// The host's parts may lie at any address; the plan reads row_offsets as int32.
std::vector<int32_t> AlignedOffsets(const PackedWeight& weight) {
  std::vector<int32_t> offsets(static_cast<size_t>(weight.out_features) + 1);
  std::memcpy(offsets.data(), weight.row_offsets, offsets.size() * sizeof(int32_t));
  return offsets;
}

/// Runs parts of a check on the threads that load weights.
void InParts(int64_t rows, const std::function<void(int64_t, int64_t)>& check) {
  constexpr int64_t kRowsOfPart = 64;
  const auto parts = std::clamp<int64_t>(rows / kRowsOfPart, 1, static_cast<int64_t>(LoadWorkers()));
  RunAtOnce(static_cast<size_t>(parts), [&](size_t part) {
    const auto at = static_cast<int64_t>(part);
    check(rows * at / parts, rows * (at + 1) / parts);
  });
}

}  // namespace

DeviceWeight::~DeviceWeight() {
  FreeParts();
  if (layout_ != nullptr) pool_->Free(layout_);
  if (expanded_ != nullptr) pool_->Free(expanded_);
}

void DeviceWeight::FreeParts() {
  for (const void* part :
       {static_cast<const void*>(parts_.bitmap), static_cast<const void*>(parts_.row_offsets), parts_.values}) {
    if (part != nullptr) pool_->Free(const_cast<void*>(part));
  }
  parts_ = cuda::DeviceParts{};
}

uint32_t DeviceWeight::Send(const PackedWeight& weight, bool with_checksum, Gpu* gpu) {
  const DeviceScope scope(gpu->ordinal());
  const auto bitmap_bytes = static_cast<size_t>(weight.out_features * BitmapRowBytes(weight.in_features));
  const auto offsets_bytes = static_cast<size_t>((weight.out_features + 1) * 4);
  const auto values_bytes = static_cast<size_t>(ValuesLength(weight.nnz) * SizeOf(weight.value_type));
  // Into the parts as they come, which own them.
  parts_.value_type = weight.value_type;
  void* const bitmap = pool_->Allocate(bitmap_bytes, nullptr);
  parts_.bitmap = static_cast<uint8_t*>(bitmap);
  void* const row_offsets = pool_->Allocate(offsets_bytes, nullptr);
  parts_.row_offsets = static_cast<int32_t*>(row_offsets);
  void* const values = pool_->Allocate(values_bytes, nullptr);
  parts_.values = values;
  uint32_t checksum = 0;
  Upload(gpu->ordinal(),
         {{bitmap, weight.bitmap, bitmap_bytes},
          {row_offsets, weight.row_offsets, offsets_bytes},
          {values, weight.values, values_bytes}},
         with_checksum ? &checksum : nullptr);
  return checksum;
}

void DeviceWeight::LayOut(const PackedWeight& weight, cuda::ElementType type, int expected_n, bool expand, Gpu* gpu) {
  const DeviceScope scope(gpu->ordinal());
  const OwnStream own_stream;
  const cudaStream_t stream = own_stream.get();
  cuda::PlanOptions options;
  options.expected_n = expected_n;
  if (weight.value_type == ValueType::kFloat32) {
    const Scratch result(pool_.get(), 4, nullptr);
    CheckCuda(cuda::CheckHalfExact(static_cast<const float*>(parts_.values), weight.nnz, result.get(), stream,
                                   &options.float32_is_half),
              "looking at a weight's values");
  }
  const std::vector<int32_t> offsets = AlignedOffsets(weight);
  PackedWeight aligned = weight;
  aligned.row_offsets = offsets.data();
  CheckCuda(cuda::MakePlan(aligned, gpu->device(), options, &plan_), "planning a weight");
  if (!cuda::Supports(plan_, type)) plan_.layout = cuda::Layout::kCanonical;  // the parts serve every type
  if (plan_.layout == cuda::Layout::kCanonical) return;
  const Scratch staging(pool_.get(), static_cast<size_t>(plan_.staging_bytes), nullptr);
  CheckCuda(cuda::Measure(parts_, staging.get(), stream, &plan_), "measuring a weight");
  layout_ = pool_->Allocate(static_cast<size_t>(plan_.layout_bytes), nullptr);
  CheckCuda(cuda::Convert(plan_, parts_, staging.get(), layout_, stream), "laying a weight out");
  if (expand && cuda::SupportsPrefill(plan_, type)) {
    expanded_ = pool_->Allocate(static_cast<size_t>(cuda::ExpandedBytes(plan_)), nullptr);
    CheckCuda(cuda::Expand(plan_, layout_, 0, plan_.blocks, expanded_, false, stream), "expanding a weight");
  }
  WaitForStream(stream);  // staging and parts are freed
  FreeParts();
}

std::shared_ptr<const DeviceWeight> DeviceWeightCache::Prepare(const PackedWeightClaim& claim, cuda::ElementType type,
                                                               int expected_n, bool verify_checksum,
                                                               const std::string& where) {
  const Key key{claim.bitmap,   claim.row_offsets, claim.values, claim.out_features, claim.in_features, claim.nnz,
                claim.checksum, claim.value_type,  type,         expected_n};
  std::lock_guard<std::mutex> lock(mutex_);
  std::weak_ptr<const DeviceWeight>& entry = loaded_[key];
  if (std::shared_ptr<const DeviceWeight> ready = entry.lock()) return ready;
  const auto reject = [&](const std::string& wrong) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: the packed weight of " + where + " is not valid: " + wrong);
  };
  PackedWeight weight;
  const std::string wrong = Validate(claim, false, &weight, InParts);
  if (!wrong.empty()) reject(wrong);
  const auto loaded = std::make_shared<DeviceWeight>(pool_);
  const uint32_t found = loaded->Send(weight, verify_checksum, gpu_);
  if (verify_checksum && found != claim.checksum) reject(ChecksumMessage(found, claim.checksum));
  const int64_t expanded_bytes = 2 * weight.out_features * weight.in_features;
  const bool expand = expanded_bytes <= expanded_left_;
  if (expand) expanded_left_ -= expanded_bytes;
  loaded->LayOut(weight, type, expected_n, expand, gpu_);
  entry = loaded;
  return loaded;
}

}  // namespace flashllm::ep
