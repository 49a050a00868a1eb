#include "provider/node/weights.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/sparse-matmul/packer.h"
#include "provider/node/run_threads.h"
#include "provider/node/weight_arguments.h"
#include "provider/node/weight_progress.h"

namespace flashllm::node {
namespace {

// Elements of the largest weight that unpackWeight expands: 4 GB of float32.
constexpr int64_t kMaxUnpackedElements = int64_t{1} << 30;

Napi::Number ToNumber(Napi::Env env, int64_t value) { return Napi::Number::New(env, static_cast<double>(value)); }

class AnalyzeTask final : public Task {
 public:
  explicit AnalyzeTask(const Napi::CallbackInfo& info)
      : segments_(ReadSegments(info[0])), options_(ReadWeightOptions(info[1])), progress_(info[2], info[3]) {}

  void Execute() override {
    analysis_ = AnalyzeWeight(segments_, options_, progress_.Control());
    progress_.Close();
  }
  void Cancel() override { progress_.Cancel(); }

  Napi::Value Result(Napi::Env env) override {
    Napi::Object result = Napi::Object::New(env);
    result.Set("outFeatures", ToNumber(env, analysis_.out_features));
    result.Set("inFeatures", ToNumber(env, analysis_.in_features));
    result.Set("zeros", ToNumber(env, analysis_.zeros));
    result.Set("nnz", ToNumber(env, analysis_.nnz));
    result.Set("nonFinite", ToNumber(env, analysis_.non_finite));
    result.Set("fitsFloat16", Napi::Boolean::New(env, analysis_.fits_float16));
    result.Set("fitsBFloat16", Napi::Boolean::New(env, analysis_.fits_bfloat16));
    return result;
  }

 private:
  const std::vector<WeightSegment> segments_;
  const WeightOptions options_;
  WeightProgress progress_;
  WeightAnalysis analysis_;
};

class PackTask final : public Task {
 public:
  explicit PackTask(const Napi::CallbackInfo& info)
      : segments_(ReadSegments(info[0])),
        options_(ReadWeightOptions(info[1])),
        value_type_(ReadFloatType(ReadObject(info[1], "options"), "valueType")),
        destination_(ReadDestination(info[2])),
        progress_(info[3], info[4]) {}

  void Execute() override {
    result_ = PackWeight(segments_, options_, value_type_, destination_, progress_.Control());
    progress_.Close();
  }
  void Cancel() override { progress_.Cancel(); }

  Napi::Value Result(Napi::Env env) override {
    Napi::Object result = Napi::Object::New(env);
    result.Set("nnz", ToNumber(env, result_.nnz));
    result.Set("checksum", ToNumber(env, result_.checksum));
    return result;
  }

 private:
  const std::vector<WeightSegment> segments_;
  const WeightOptions options_;
  const ValueType value_type_;
  const PackDestination destination_;
  WeightProgress progress_;
  PackResult result_;
};

class UnpackTask final : public Task {
 public:
  explicit UnpackTask(const Napi::CallbackInfo& info) {
    const Napi::Object weight = ReadObject(info[0], "weight");
    claim_.format_version = kFormatVersion;
    claim_.out_features = ReadInteger(weight, "outFeatures", 1);
    claim_.in_features = ReadInteger(weight, "inFeatures", 1);
    claim_.nnz = ReadInteger(weight, "nnz", 0);
    claim_.checksum = static_cast<uint32_t>(ReadInteger(weight, "checksum", 0));
    claim_.value_type = ReadFloatType(weight, "valueType");
    bitmap_ = ReadPart(weight, "bitmap");
    row_offsets_ = ReadPart(weight, "rowOffsets");
    values_ = ReadPart(weight, "values");
  }

  void Execute() override {
    if (claim_.out_features > kMaxUnpackedElements / claim_.in_features) {
      throw PackError("the weight has " + std::to_string(claim_.out_features) + " x " +
                      std::to_string(claim_.in_features) + " elements, expected at most " +
                      std::to_string(kMaxUnpackedElements) + " to expand at once");
    }
    const std::vector<uint8_t> bitmap = ReadFilePart(bitmap_.path, bitmap_.offset, bitmap_.length);
    const std::vector<uint8_t> row_offsets = ReadFilePart(row_offsets_.path, row_offsets_.offset, row_offsets_.length);
    const std::vector<uint8_t> values = ReadFilePart(values_.path, values_.offset, values_.length);
    claim_.bitmap = bitmap.data();
    claim_.bitmap_rows = claim_.out_features;
    claim_.bitmap_cols = ExactQuotient(bitmap_.length, claim_.out_features);
    claim_.row_offsets = reinterpret_cast<const int32_t*>(row_offsets.data());
    claim_.row_offsets_length = ExactQuotient(row_offsets_.length, 4);
    claim_.values = values.data();
    claim_.values_length = ExactQuotient(values_.length, SizeOf(claim_.value_type));
    PackedWeight weight;
    const std::string error = Validate(claim_, true, &weight);
    if (!error.empty()) throw PackError("the packed weight in " + bitmap_.path + " is not valid: " + error);
    dense_.resize(static_cast<size_t>(weight.out_features * weight.in_features));
    UnpackWeight(weight, dense_.data());
  }

  Napi::Value Result(Napi::Env env) override {
    Napi::Float32Array data = Napi::Float32Array::New(env, dense_.size());
    std::copy(dense_.begin(), dense_.end(), data.Data());
    Napi::Object result = Napi::Object::New(env);
    result.Set("data", data);
    return result;
  }

 private:
  struct Part {
    std::string path;
    int64_t offset = 0;
    int64_t length = 0;
  };

  static Part ReadPart(const Napi::Object& weight, const char* name) {
    const Napi::Object part = ReadObject(weight.Get(name), name);
    return {ReadString(part, "path"), ReadInteger(part, "offset", 0), ReadInteger(part, "length", 0)};
  }

  // -1, which no dimension equals, where the length is not a whole number of elements.
  static int64_t ExactQuotient(int64_t bytes, int64_t size) { return bytes % size == 0 ? bytes / size : -1; }

  PackedWeightClaim claim_;
  Part bitmap_, row_offsets_, values_;
  std::vector<float> dense_;
};

}  // namespace

void InitWeights(Napi::Env env, Napi::Object exports) {
  exports.Set("analyzeWeight", Napi::Function::New(env, Start<AnalyzeTask>, "analyzeWeight"));
  exports.Set("packWeight", Napi::Function::New(env, Start<PackTask>, "packWeight"));
  exports.Set("unpackWeight", Napi::Function::New(env, Start<UnpackTask>, "unpackWeight"));
}

}  // namespace flashllm::node
