#include "bench/spmm/means.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace flashllm::bench {

void Means::Add(int n, double sparsity, const std::string& what, double speedup) {
  if (!std::isfinite(speedup)) return;
  if (std::find(names_.begin(), names_.end(), what) == names_.end()) names_.push_back(what);
  Sum& sum = sums_[n][sparsity][what];
  sum.logs += std::log(speedup);
  ++sum.count;
}

double Means::Of(int n, double sparsity, const std::string& what) const {
  const auto& here = sums_.at(n).at(sparsity);
  const auto found = here.find(what);
  return found == here.end() ? std::nan("") : std::exp(found->second.logs / found->second.count);
}

void Means::Finish(const char* list, Report* report) const {
  for (const auto& [n, by_sparsity] : sums_) {
    std::printf("N=%d, speed-up over cublasGemmEx\n%-12s", n, "  sparsity");
    for (const auto& column : by_sparsity) std::printf(" %6.2f", column.first);
    for (const std::string& name : names_) {
      std::printf("\n  %-10s", name.c_str());
      for (const auto& column : by_sparsity) {
        const double mean = Of(n, column.first, name);
        std::isfinite(mean) ? std::printf(" %6.2f", mean) : std::printf("      -");
      }
    }
    std::printf("\n");
    for (const auto& [sparsity, by_name] : by_sparsity) {
      int matrices = 0;
      for (const auto& entry : by_name) matrices = std::max(matrices, entry.second.count);
      JsonObject row;
      row.Integer("n", n).Number("sparsity", sparsity, 2).Integer("matrices", matrices);
      for (const std::string& name : names_) row.Number(name.c_str(), Of(n, sparsity, name), 3);
      report->Add(list, row);
    }
  }
}

}  // namespace flashllm::bench
