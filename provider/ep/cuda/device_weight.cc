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

void DeviceWeight::Load(const PackedWeight& weight, cuda::ElementType type, Gpu* gpu) {
  const DeviceScope scope(gpu->ordinal());
  const LoadStream stream;
  const auto upload = [&](const void* from, int64_t bytes) {
    void* to = pool_->Allocate(static_cast<size_t>(bytes), nullptr);
    try {
      Upload(gpu->ordinal(), to, from, static_cast<size_t>(bytes));
    } catch (...) {
      pool_->Free(to);
      throw;
    }
    return to;
  };
  parts_.value_type = weight.value_type;
  parts_.values = upload(weight.values, ValuesLength(weight.nnz) * SizeOf(weight.value_type));
  parts_.bitmap =
      static_cast<uint8_t*>(upload(weight.bitmap, weight.out_features * BitmapRowBytes(weight.in_features)));
  parts_.row_offsets = static_cast<int32_t*>(upload(weight.row_offsets, (weight.out_features + 1) * 4));
  LayOut(weight, type, gpu->device(), stream.get());
}

void DeviceWeight::LayOut(const PackedWeight& weight, cuda::ElementType type, const cuda::DeviceInfo& device,
                          cudaStream_t stream) {
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
  CheckCuda(cuda::MakePlan(aligned, device, options, &plan_), "planning a weight");
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
  PackedWeight weight;
  const std::string wrong = Validate(claim, verify_checksum, &weight);
  if (!wrong.empty()) {
    throw Error(ORT_INVALID_GRAPH, "flashllm: the packed weight of " + where + " is not valid: " + wrong);
  }
  const auto loaded = std::make_shared<DeviceWeight>(pool_);
  loaded->Load(weight, type, gpu_);
  entry = loaded;
  return loaded;
}

}  // namespace flashllm::ep
