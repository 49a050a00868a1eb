#include "provider/ep/cuda/device_weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/upload.h"
#include "provider/ep/cuda/workers.h"

namespace flashllm::ep {
namespace {

/// The host's offsets may lie at any address, and only as long as the weight is sent; the plan reads them as int32.
std::vector<int32_t> KeepOffsets(const PackedWeight& weight) {
  std::vector<int32_t> offsets(static_cast<size_t>(weight.out_features) + 1);
  std::memcpy(offsets.data(), weight.row_offsets, offsets.size() * sizeof(int32_t));
  return offsets;
}

/// Cuts a check of rows into parts for the threads that send.
void AddChecks(int64_t rows, const CheckRange& check, UploadExtras* extras) {
  constexpr int64_t kRowsOfPart = 64;
  const auto parts = std::clamp<int64_t>(rows / kRowsOfPart, 1, static_cast<int64_t>(LoadWorkers()));
  extras->checks = static_cast<size_t>(parts);
  extras->check = [rows, parts, &check](size_t part) {
    const auto at = static_cast<int64_t>(part);
    check(rows * at / parts, rows * (at + 1) / parts);
  };
}

size_t BitmapBytes(const PackedWeightClaim& claim) {
  return static_cast<size_t>(claim.out_features * BitmapRowBytes(claim.in_features));
}
size_t OffsetsBytes(const PackedWeightClaim& claim) { return static_cast<size_t>((claim.out_features + 1) * 4); }
size_t ValuesBytes(const PackedWeightClaim& claim) {
  return static_cast<size_t>(ValuesLength(claim.nnz) * SizeOf(claim.value_type));
}

size_t Aligned(size_t bytes) {
  constexpr size_t kAlignment = 256;
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

size_t PartsBytes(const PackedWeightClaim& claim) {
  return Aligned(BitmapBytes(claim)) + Aligned(ValuesBytes(claim)) + OffsetsBytes(claim);
}

}  // namespace

DeviceWeight::~DeviceWeight() {
  // Memory that bytes are on the way to is not given to others.
  if (arrived_) static_cast<void>(cudaEventSynchronize(arrived_->get()));
  FreeParts();
  if (layout_ != nullptr) pool_->Free(layout_);
}

void DeviceWeight::FreeParts() {
  if (parts_memory_ != nullptr) parts_pool_->Free(parts_memory_);
  parts_memory_ = nullptr;
  parts_ = cuda::DeviceParts{};
}

void DeviceWeight::AllocateParts(const PackedWeightClaim& claim) {
  const size_t values_at = Aligned(BitmapBytes(claim)), offsets_at = values_at + Aligned(ValuesBytes(claim));
  parts_memory_ = parts_pool_->Allocate(PartsBytes(claim), nullptr);
  auto* const memory = static_cast<uint8_t*>(parts_memory_);
  parts_.bitmap = memory;
  parts_.values = memory + values_at;
  parts_.row_offsets = reinterpret_cast<int32_t*>(memory + offsets_at);
  parts_.value_type = claim.value_type;
}

uint32_t DeviceWeight::Send(const PackedWeightClaim& claim, const UploadExtras& extras, Gpu* gpu) {
  const DeviceScope scope(gpu->ordinal());
  arrived_.emplace();
  return StartUpload(gpu->ordinal(),
                     {{const_cast<uint8_t*>(parts_.bitmap), claim.bitmap, BitmapBytes(claim)},
                      {const_cast<int32_t*>(parts_.row_offsets), claim.row_offsets, OffsetsBytes(claim)},
                      {const_cast<void*>(parts_.values), claim.values, ValuesBytes(claim)}},
                     extras, arrived_->get());
}

void DeviceWeight::LayOut(const PackedWeight& weight, cuda::ElementType type, int expected_n, Gpu* gpu,
                          cudaStream_t stream) {
  AwaitUpload(arrived_->get());
  cuda::PlanOptions options;
  options.expected_n = expected_n;
  if (weight.value_type == ValueType::kFloat32) {
    const Scratch result(parts_pool_.get(), 4, nullptr);
    CheckCuda(cuda::CheckHalfExact(static_cast<const float*>(parts_.values), weight.nnz, result.get(), stream,
                                   &options.float32_is_half),
              "looking at a weight's values");
  }
  CheckCuda(cuda::MakePlan(weight, gpu->device(), options, &plan_), "planning a weight");
  if (!cuda::Supports(plan_, type)) plan_.layout = cuda::Layout::kCanonical;  // the parts serve every type
  if (plan_.layout == cuda::Layout::kCanonical) return;
  const Scratch staging(parts_pool_.get(), static_cast<size_t>(plan_.staging_bytes), nullptr);
  CheckCuda(cuda::Measure(parts_, staging.get(), stream, &plan_), "measuring a weight");
  layout_ = pool_->Allocate(static_cast<size_t>(plan_.layout_bytes), nullptr);
  CheckCuda(cuda::Convert(plan_, parts_, staging.get(), layout_, stream), "laying a weight out");
  WaitForStream(stream);  // staging and parts are freed
  FreeParts();
}

DeviceWeightCache::DeviceWeightCache(Gpu* gpu, std::shared_ptr<MemoryPool> pool)
    : gpu_(gpu),
      pool_(std::move(pool)),
      parts_pool_(std::make_shared<MemoryPool>(gpu->ordinal(), MemoryKind::kDevice)),
      layouts_(gpu->ordinal()) {}

std::shared_ptr<const DeviceWeight> DeviceWeightCache::Prepare(const PackedWeightClaim& claim, cuda::ElementType type,
                                                               int expected_n, bool verify_checksum,
                                                               const std::string& where) {
  const Key key{claim.bitmap,   claim.row_offsets, claim.values, claim.out_features, claim.in_features, claim.nnz,
                claim.checksum, claim.value_type,  type,         expected_n};
  std::lock_guard<std::mutex> lock(mutex_);
  std::weak_ptr<const DeviceWeight>& entry = loaded_[key];
  if (std::shared_ptr<const DeviceWeight> loaded = entry.lock()) return loaded;
  const auto reject = [&](const std::string& wrong) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: the packed weight of " + where + " is not valid: " + wrong);
  };
  const auto loaded = std::make_shared<DeviceWeight>(pool_, parts_pool_);
  uint32_t found = 0;
  // The threads that check rows send what they have checked; where something is wrong it was sent for nothing.
  const auto check_and_send = [&](int64_t rows, const CheckRange& check) {
    UploadExtras extras;
    extras.checksum = verify_checksum;
    AddChecks(rows, check, &extras);
    Allocate(claim, loaded.get());
    found = loaded->Send(claim, extras, gpu_);
  };
  PackedWeight weight;
  const std::string wrong = Validate(claim, false, &weight, check_and_send);
  if (!wrong.empty()) reject(wrong);
  if (verify_checksum && found != claim.checksum) reject(ChecksumMessage(found, claim.checksum));
  layouts_.Add(PartsBytes(claim),
               [loaded, weight, type, expected_n, gpu = gpu_, offsets = KeepOffsets(weight)](cudaStream_t stream) {
                 PackedWeight kept = weight;
                 kept.row_offsets = offsets.data();
                 loaded->LayOut(kept, type, expected_n, gpu, stream);
               });
  // Older hosts do not tell when a session is complete.
  constexpr uint32_t kSessionEndSince = 27;
  if (g_ort.version < kSessionEndSince) layouts_.Finish();
  entry = loaded;
  return loaded;
}

/// Where the GPU is full, parts that wait for their layout may be what fills it.
void DeviceWeightCache::Allocate(const PackedWeightClaim& claim, DeviceWeight* weight) {
  try {
    weight->AllocateParts(claim);
  } catch (const Error&) {
    layouts_.Finish();
    weight->AllocateParts(claim);
  }
}

void DeviceWeightCache::Finish() {
  layouts_.Finish();
  parts_pool_->Trim();
}

}  // namespace flashllm::ep
