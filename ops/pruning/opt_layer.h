// One decoder layer of an OPT model on calibration text: computed in stages, each of which ends at the inputs of linears, so that
// those can be pruned before what follows is computed with them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/pruning/activation_file.h"
#include "ops/pruning/input_statistics.h"
#include "ops/pruning/prune.h"
#include "ops/pruning/workers.h"

namespace flashllm::pruning {

struct OptShape {
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t heads = 0;
  bool pre_norm = true;
  bool gelu = false;  // else ReLU
  int64_t sequences = 0;
  int64_t length = 0;  // tokens of each sequence
};

enum LinearId { kQuery, kKey, kValue, kAttentionOut, kFc1, kFc2, kLinears };
enum NormId { kAttentionNorm, kFinalNorm, kNorms };

/// What is computed, and whose inputs that gives: each needs the one before.
enum class Stage : uint8_t {
  kAttentionIn,   // kQuery, kKey and kValue
  kAttentionOut,  // kAttentionOut
  kFeedForwardIn,   // kFc1
  kFeedForwardOut,  // kFc2
};

struct Norm {
  Floats scale, shift;  // both empty where the norm has none
};

struct LayerFiles {
  std::string input;    // exists: [sequences, length, hidden]
  std::string context;  // made: room for what the heads give
  std::string output;   // made
};

/// Not safe for several threads at once. Throws PruningError.
class OptLayer {
 public:
  /// Called with the fraction of a stage that is done.
  using Progress = std::function<void(double)>;

  /// Checks all shapes.
  OptLayer(const OptShape& shape, std::array<Linear, kLinears> linears, std::array<Norm, kNorms> norms, const LayerFiles& files);

  Linear& linear(LinearId id) { return linears_[id]; }

  /// Runs a stage with the weights as they are now. The statistics replace those of the stage before.
  void Collect(Workers& workers, Stage stage, const Progress& progress);
  /// Of the stage that was run last.
  const InputStatistics& inputs() const { return *inputs_; }
  Stage stage() const { return stage_; }

  /// Computes the layer's output with the weights as they are now, and writes it to the disk.
  void Finish(Workers& workers, const Progress& progress);

 private:
  int64_t Width(Stage stage) const { return stage == Stage::kFeedForwardOut ? shape_.ffn : shape_.hidden; }
  void ComputeInputs(Stage stage, int64_t sequence, float* x);
  void Attend(int64_t sequence, float* x);
  void AddAttention(int64_t sequence);
  void FeedForwardIn(int64_t sequence, float* x);
  void FeedForward(int64_t sequence, float* x);
  void Apply(LinearId id, const float* x, float* y, float beta) const;
  void Normalise(NormId id, const float* x, float* y) const;
  float* At(ActivationFile& file, int64_t sequence) const { return file.data() + sequence * shape_.length * shape_.hidden; }

  OptShape shape_;
  std::array<Linear, kLinears> linears_;
  std::array<Norm, kNorms> norms_;
  ActivationFile input_, context_, output_;
  std::unique_ptr<InputStatistics> inputs_;
  Stage stage_ = Stage::kAttentionIn;
};

/// Embeddings of all sequences: token and position rows, the token's through `project_in` (no bias) where it is not empty.
/// ids is [sequences, length]; token_table [vocabulary, embed], position_table [positions, hidden] with two unused rows first.
void EmbedSequences(Workers& workers, const OptShape& shape, const std::vector<int32_t>& ids, const Floats& token_table,
                    int64_t embed, const Floats& position_table, const Floats& project_in,
                    const std::string& output);

}  // namespace flashllm::pruning
