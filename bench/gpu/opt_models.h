// Sizes of the OPT models.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace flashllm::bench {

/// Width of a model's residual stream; ends the program where the name is unknown.
inline int64_t HiddenSize(const std::string& model) {
  const std::map<std::string, int64_t> sizes = {{"opt-1.3b", 2048}, {"opt-6.7b", 4096}, {"opt-13b", 5120},
                                                {"opt-30b", 7168},  {"opt-66b", 9216},  {"opt-175b", 12288}};
  const auto found = sizes.find(model);
  if (found != sizes.end()) return found->second;
  std::fprintf(stderr, "--model %s: expected opt-1.3b, opt-6.7b, opt-13b, opt-30b, opt-66b or opt-175b\n",
               model.c_str());
  std::exit(2);
}

/// Width of an attention head.
inline int64_t HeadSize(int64_t h) { return h == 2048 ? 64 : 128; }

/// The four matrices of a decoder layer, [out_features, in_features].
inline std::map<std::string, std::pair<int64_t, int64_t>> LayerShapes(int64_t h) {
  return {{"qkv", {3 * h, h}}, {"o", {h, h}}, {"fc1", {4 * h, h}}, {"fc2", {h, 4 * h}}};
}

}  // namespace flashllm::bench
