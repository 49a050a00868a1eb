#include "provider/ep/cuda/device_weight.h"

#include <cstring>
#include <vector>

#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/upload.h"

namespace flashllm::ep {
namespace {

/// A stream for the length of a scope.
class LoadStream {
 public:
  LoadStream() { CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  ~LoadStream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  LoadStream(const LoadStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// The host's parts may lie at any address; the plan reads row_offsets as int32.
std::vector<int32_t> AlignedOffsets(const PackedWeight& weight) {
  std::vector<int32_t> offsets(static_cast<size_t>(weight.out_features) + 1);
  std::memcpy(offsets.data(), weight.row_offsets, offsets.size() * sizeof(int32_t));
  return offsets;
}

}  // namespace

DeviceWeight::~DeviceWeight() {
  FreeParts();
  if (layout_ != nullptr) pool_->Free(layout_);
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
  uint32_t checksum = 0;
  const auto send = [&](const void* from, int64_t bytes) {
    void* to = pool_->Allocate(static_cast<size_t>(bytes), nullptr);
    try {
      Upload(gpu->ordinal(), to, from, static_cast<size_t>(bytes), with_checksum ? &checksum : nullptr);
    } catch (...) {
      pool_->Free(to);
      throw;
    }
    return to;
  };
  parts_.value_type = weight.value_type;
  // In the order of the checksum.
  parts_.bitmap = static_cast<uint8_t*>(send(weight.bitmap, weight.out_features * BitmapRowBytes(weight.in_features)));
  parts_.row_offsets = static_cast<int32_t*>(send(weight.row_offsets, (weight.out_features + 1) * 4));
  parts_.values = send(weight.values, ValuesLength(weight.nnz) * SizeOf(weight.value_type));
  return checksum;
}

void DeviceWeight::LayOut(const PackedWeight& weight, cuda::ElementType type, Gpu* gpu) {
  const DeviceScope scope(gpu->ordinal());
  const LoadStream load_stream;
  const cudaStream_t stream = load_stream.get();
  cuda::PlanOptions options;
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
  WaitForStream(stream);  // staging and parts are freed
  FreeParts();
}

std::shared_ptr<const DeviceWeight> DeviceWeightCache::Prepare(const PackedWeightClaim& claim, cuda::ElementType type,
                                                               bool verify_checksum, const std::string& where) {
  const Key key{claim.bitmap,   claim.row_offsets, claim.values, claim.out_features, claim.in_features, claim.nnz,
                claim.checksum, claim.value_type,  type};
  std::lock_guard<std::mutex> lock(mutex_);
  std::weak_ptr<const DeviceWeight>& entry = loaded_[key];
  if (std::shared_ptr<const DeviceWeight> ready = entry.lock()) return ready;
  const auto reject = [&](const std::string& wrong) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: the packed weight of " + where + " is not valid: " + wrong);
  };
  PackedWeight weight;
  const std::string wrong = Validate(claim, false, &weight);
  if (!wrong.empty()) reject(wrong);
  const auto loaded = std::make_shared<DeviceWeight>(pool_);
  const uint32_t found = loaded->Send(weight, verify_checksum, gpu_);
  if (verify_checksum && found != claim.checksum) reject(ChecksumMessage(found, claim.checksum));
  loaded->LayOut(weight, type, gpu_);
  entry = loaded;
  return loaded;
}

}  // namespace flashllm::ep
