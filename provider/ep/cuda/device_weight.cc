#include "provider/ep/cuda/device_weight.h"

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/prefill.h"
#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/upload.h"
#include "provider/ep/cuda/weight_memory.h"

namespace flashllm::ep {
namespace {

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

[[noreturn]] void Reject(const std::string& where, const std::string& wrong) {
  throw Error(ORT_INVALID_GRAPH, "flashllm: the packed weight of " + where + " is not valid: " + wrong);
}

/// What a plan needs to know of a weight, but its row offsets.
PackedWeight ShapeOf(const PackedWeightClaim& claim) {
  PackedWeight weight;
  weight.out_features = claim.out_features;
  weight.in_features = claim.in_features;
  weight.nnz = claim.nnz;
  weight.value_type = claim.value_type;
  return weight;
}

/// `options` before the values are known.
cuda::PlanOptions Likely(cuda::PlanOptions options) {
  options.float32_is_half = true;
  return options;
}

/// Takes `bytes` of what is left, where it is enough.
bool Take(int64_t bytes, int64_t* left) {
  if (bytes > *left) return false;
  *left -= bytes;
  return true;
}

/// Runs a part of loading so that its errors name the weight: they may be found in another one's time.
template <typename Part>
auto Naming(const std::string& where, const Part& part) {
  try {
    return part();
  } catch (const Error& error) {
    throw Error(error.code(), std::string(error.what()) + " (while loading the packed weight of " + where + ")");
  }
}

}  // namespace

/// What is needed until the weight is laid out.
struct DeviceWeight::Loading {
  std::shared_ptr<MappedFiles> files;  // open
  PackedWeightClaim claim;             // its row offsets are these; the host's may lie at any address and go away
  std::vector<int32_t> offsets;
  PartsCheck check{claim};
  bool verifies = false;
  std::optional<PendingUpload> upload;
};

DeviceWeight::DeviceWeight(std::shared_ptr<MemoryPool> pool, std::shared_ptr<MemoryPool> parts_pool)
    : pool_(std::move(pool)), parts_pool_(std::move(parts_pool)) {}

DeviceWeight::~DeviceWeight() {
  loading_.reset();  // memory that bytes are on the way to is not given to others
  FreeParts();
  if (layout_ != nullptr) pool_->Free(layout_);
  if (expanded_ != nullptr) pool_->Free(expanded_);
  if (jagged_ != nullptr) pool_->Free(jagged_);
}

void DeviceWeight::FreeParts() {
  if (parts_memory_ != nullptr) parts_pool_->Free(parts_memory_);
  parts_memory_ = nullptr;
  parts_ = cuda::DeviceParts{};
}

std::string DeviceWeight::ReadOffsets(const PackedWeightClaim& claim, const std::shared_ptr<MappedFiles>& files) {
  loading_ = std::make_unique<Loading>();
  loading_->files = files;
  loading_->claim = claim;
  std::vector<int32_t>& offsets = loading_->offsets;
  offsets.resize(static_cast<size_t>(claim.out_features) + 1);
  const FilePlace file = files->Find(claim.row_offsets, OffsetsBytes(claim));
  if (file.file >= 0) {
    ReadFile(file, offsets.data(), OffsetsBytes(claim));
  } else {
    std::memcpy(offsets.data(), claim.row_offsets, OffsetsBytes(claim));
  }
  loading_->claim.row_offsets = offsets.data();
  return CheckOffsets(loading_->claim);
}

void DeviceWeight::AllocateParts() {
  const PackedWeightClaim& claim = loading_->claim;
  const size_t values_at = Aligned(BitmapBytes(claim)), offsets_at = values_at + Aligned(ValuesBytes(claim));
  parts_memory_ = parts_pool_->Allocate(PartsBytes(claim), nullptr);
  auto* const memory = static_cast<uint8_t*>(parts_memory_);
  parts_.bitmap = memory;
  parts_.values = memory + values_at;
  parts_.row_offsets = reinterpret_cast<int32_t*>(memory + offsets_at);
  parts_.value_type = claim.value_type;
}

void DeviceWeight::Send(bool verify_checksum, Gpu* gpu) {
  const PackedWeightClaim& claim = loading_->claim;
  PartsCheck* const check = &loading_->check;
  Transfer bitmap{const_cast<uint8_t*>(parts_.bitmap), claim.bitmap, BitmapBytes(claim)};
  bitmap.file = loading_->files->Find(bitmap.from, bitmap.bytes);
  bitmap.check = [check](size_t at, const char* bytes, size_t count) {
    check->Bitmap(static_cast<int64_t>(at), bytes, static_cast<int64_t>(count));
  };
  const Transfer offsets{const_cast<int32_t*>(parts_.row_offsets), claim.row_offsets, OffsetsBytes(claim)};
  Transfer values{const_cast<void*>(parts_.values), claim.values, ValuesBytes(claim)};
  values.file = loading_->files->Find(values.from, values.bytes);
  values.check = [check](size_t at, const char* bytes, size_t count) {
    check->Values(static_cast<int64_t>(at), bytes, static_cast<int64_t>(count));
  };
  loading_->verifies = verify_checksum;
  const bool in_files = bitmap.file.file >= 0 && values.file.file >= 0;
  loading_->upload.emplace(gpu->ordinal(), std::vector<Transfer>{bitmap, offsets, values}, verify_checksum);
  if (!in_files) loading_->upload->AwaitRead();
}

std::string DeviceWeight::AwaitParts() {
  loading_->upload->AwaitArrival();
  const std::string wrong = loading_->check.Finish();
  if (!wrong.empty() || !loading_->verifies) return wrong;
  const uint32_t found = loading_->upload->checksum(), expected = loading_->claim.checksum;
  return found == expected ? std::string() : ChecksumMessage(found, expected);
}

/// The layout that a plan says, complete on the stream.
void* DeviceWeight::Convert(cuda::WeightPlan* plan, cudaStream_t stream) {
  const Scratch staging(parts_pool_.get(), static_cast<size_t>(plan->staging_bytes), nullptr);
  CheckCuda(cuda::Measure(parts_, staging.get(), stream, plan), "measuring a weight");
  void* const layout = pool_->Allocate(static_cast<size_t>(plan->layout_bytes), nullptr);
  try {
    CheckCuda(cuda::Convert(*plan, parts_, staging.get(), layout, stream), "laying a weight out");
    WaitForStream(stream);  // staging is freed
  } catch (...) {
    pool_->Free(layout);
    throw;
  }
  return layout;
}

void DeviceWeight::LayOut(cuda::ElementType type, cuda::PlanOptions options, bool expand,
                          std::optional<cuda::PlanOptions> few, Gpu* gpu, cudaStream_t stream) {
  PackedWeight weight = ShapeOf(loading_->claim);
  weight.row_offsets = loading_->claim.row_offsets;
  if (weight.value_type == ValueType::kFloat32) {
    const Scratch result(parts_pool_.get(), 4, nullptr);
    CheckCuda(cuda::CheckHalfExact(static_cast<const float*>(parts_.values), weight.nnz, result.get(), stream,
                                   &options.float32_is_half),
              "looking at a weight's values");
  } else if (weight.value_type == ValueType::kBFloat16) {
    const Scratch result(parts_pool_.get(), 4, nullptr);
    CheckCuda(cuda::CheckInfinity(static_cast<const uint16_t*>(parts_.values), weight.nnz, result.get(), stream,
                                  &options.has_infinity),
              "looking at a weight's values");
  }
  CheckCuda(cuda::MakePlan(weight, gpu->device(), options, &plan_), "planning a weight");
  if (few.has_value()) {
    few->float32_is_half = options.float32_is_half;
    for (int columns : {1, 2}) {
      few->expected_n = columns;
      cuda::WeightPlan plan;
      CheckCuda(cuda::MakePlan(weight, gpu->device(), *few, &plan), "planning a weight");
      if (plan.layout == cuda::Layout::kJagged) jagged_columns_ = columns, jagged_plan_ = plan;
    }
  }
  loading_.reset();
  if (!cuda::Supports(plan_, type)) plan_.layout = cuda::Layout::kCanonical;  // the parts serve every type
  if (plan_.layout == cuda::Layout::kCanonical) return;
  layout_ = Convert(&plan_, stream);
  if (jagged_columns_ > 0) jagged_ = Convert(&jagged_plan_, stream);
  if ((expand || plan_.dense) && cuda::SupportsPrefill(plan_, type)) {
    expanded_ = pool_->Allocate(static_cast<size_t>(cuda::ExpandedBytes(plan_)), nullptr);
    CheckCuda(cuda::Expand(plan_, layout_, 0, plan_.blocks, expanded_, cuda::WeightOrder::kRows, false, stream),
              "expanding a weight");
    WaitForStream(stream);
    if (plan_.dense) {
      pool_->Free(layout_);
      layout_ = nullptr;
    }
  }
  FreeParts();
}

DeviceWeightCache::DeviceWeightCache(Gpu* gpu, std::shared_ptr<MemoryPool> pool, const KeptBytes& kept)
    : gpu_(gpu),
      pool_(std::move(pool)),
      parts_pool_(std::make_shared<MemoryPool>(gpu->ordinal(), MemoryKind::kDevice)),
      left_(kept),
      layouts_(gpu->ordinal()) {}

std::shared_ptr<const DeviceWeight> DeviceWeightCache::Prepare(const PackedWeightClaim& claim, cuda::ElementType type,
                                                               const cuda::PlanOptions& options, bool verify_checksum,
                                                               const std::string& where) {
  const Key key{claim.bitmap,   claim.row_offsets, claim.values, claim.out_features, claim.in_features, claim.nnz,
                claim.checksum, claim.value_type,  type};
  std::lock_guard<std::mutex> lock(mutex_);
  std::weak_ptr<const DeviceWeight>& entry = loaded_[key];
  if (std::shared_ptr<const DeviceWeight> loaded = entry.lock()) return loaded;
  if (const std::string wrong = CheckShapes(claim); !wrong.empty()) Reject(where, wrong);
  layouts_.AwaitRoom(PartsBytes(claim));
  const std::shared_ptr<DeviceWeight> begun = Begin(claim, verify_checksum, where);
  const bool expand = PlanExpanded(claim, type, options);
  std::optional<cuda::PlanOptions> few = PlanCopy(claim, type, options);
  layouts_.Add(PartsBytes(claim), {[begun, where] {
                                     const std::string wrong = Naming(where, [&] { return begun->AwaitParts(); });
                                     if (!wrong.empty()) Reject(where, wrong);
                                   },
                                   [begun, where, type, options, expand, few, gpu = gpu_](cudaStream_t stream) {
                                     Naming(where, [&] { begun->LayOut(type, options, expand, few, gpu, stream); });
                                   }});
  // Older hosts do not tell when a session is complete.
  constexpr uint32_t kSessionEndSince = 27;
  if (g_ort.version < kSessionEndSince) layouts_.Finish();
  entry = begun;
  return begun;
}

/// Whether it is kept expanded beside its layout, if the memory for that is left. One that lies dense has no layout.
bool DeviceWeightCache::PlanExpanded(const PackedWeightClaim& claim, cuda::ElementType type,
                                     const cuda::PlanOptions& options) {
  const cuda::WeightPlan plan = cuda::ExpectedPlan(ShapeOf(claim), gpu_->device(), Likely(options), type);
  return !plan.dense && cuda::SupportsPrefill(plan, type) &&
         Take(2 * claim.out_features * claim.in_features, &left_.expanded);
}

/// As which it is laid out a second time for one or two columns, if the memory for that is left: by what it is expected
/// to take, since weights are measured in no order.
std::optional<cuda::PlanOptions> DeviceWeightCache::PlanCopy(const PackedWeightClaim& claim, cuda::ElementType type,
                                                             const cuda::PlanOptions& options) {
  if (left_.jagged == 0) return std::nullopt;
  const PackedWeight weight = ShapeOf(claim);
  const std::optional<cuda::PlanOptions> few = JaggedCopy(weight, gpu_->device(), Likely(options), type);
  if (!few.has_value()) return std::nullopt;
  const double bytes = cuda::ExpectedBytes(weight, gpu_->device(), *few, type);
  return Take(static_cast<int64_t>(bytes), &left_.jagged) ? few : std::nullopt;
}

/// Makes a weight that is on the way.
std::shared_ptr<DeviceWeight> DeviceWeightCache::Begin(const PackedWeightClaim& claim, bool verify_checksum,
                                                       const std::string& where) {
  if (files_ == nullptr) files_ = std::make_shared<MappedFiles>();
  auto weight = std::make_shared<DeviceWeight>(pool_, parts_pool_);
  const std::string wrong = Naming(where, [&] { return weight->ReadOffsets(claim, files_); });
  if (!wrong.empty()) Reject(where, wrong);
  AllocateParts(weight.get(), where);
  Naming(where, [&] { weight->Send(verify_checksum, gpu_); });
  return weight;
}

/// Where the GPU is full, parts that wait for their layout may be what fills it.
void DeviceWeightCache::AllocateParts(DeviceWeight* weight, const std::string& where) {
  try {
    weight->AllocateParts();
  } catch (const Error&) {
    layouts_.Finish();
    Naming(where, [&] { weight->AllocateParts(); });
  }
}

void DeviceWeightCache::Finish() {
  layouts_.Finish();
  files_.reset();
  parts_pool_->Trim();
}

}  // namespace flashllm::ep
