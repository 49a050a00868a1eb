// Geometric means of speed-ups over a model's matrices.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bench/gpu/report.h"

namespace flashllm::bench {

/// Collects speed-ups by columns of X, sparsity and the name of what was timed.
class Means {
 public:
  /// Ignores NaN: not measured.
  void Add(int n, double sparsity, const std::string& what, double speedup);
  /// Prints a table for each N, of a row for each name and a column for each sparsity, and adds a row for each N and
  /// sparsity to that list of the report.
  void Finish(const char* list, Report* report) const;

 private:
  struct Sum {
    double logs = 0;
    int count = 0;
  };
  double Of(int n, double sparsity, const std::string& what) const;

  std::vector<std::string> names_;  // in the order in which they came
  std::map<int, std::map<double, std::map<std::string, Sum>>> sums_;
};

}  // namespace flashllm::bench
