// The results file of a GPU benchmark.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace flashllm::bench {

/// A JSON object, built field by field in the order in which it is written. Names and texts hold no character that JSON
/// escapes, save those of texts' quotes and backslashes.
class JsonObject {
 public:
  JsonObject& Text(const char* name, const std::string& value);
  JsonObject& Integer(const char* name, int64_t value);
  JsonObject& Boolean(const char* name, bool value);
  /// null where the value is NaN: not measured.
  JsonObject& Number(const char* name, double value, int decimals);
  const std::string& fields() const { return fields_; }

 private:
  JsonObject& Add(const char* name, const std::string& value);

  std::string fields_;
};

/// Date, commit, GPU and the versions of driver and CUDA.
JsonObject DescribeRun(const std::string& commit, const cudaDeviceProp& properties);

/// Header fields and lists of rows. After every row the whole file is written anew beside itself and renamed, so that a
/// run that is cut short leaves what it measured.
class Report {
 public:
  /// An empty path: nothing is written.
  Report(std::string path, const JsonObject& header) : path_(std::move(path)), header_(header.fields()) {}

  /// Ends the program where the file cannot be written.
  void Add(const char* list, const JsonObject& row);

 private:
  void Write() const;

  const std::string path_, header_;
  std::vector<std::pair<std::string, std::vector<std::string>>> lists_;
};

}  // namespace flashllm::bench
