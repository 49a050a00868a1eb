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
#include "ops/pruning/target_statistics.h"
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

/// The layer twice: with the weights as they are being pruned, on what the pruned layers before give, and as it was, on what the dense
/// layers before give. The second is what the first should come close to.
enum Side { kPruned, kDense, kSides };

/// Not safe for several threads at once. Throws PruningError.
class OptLayer {
 public:
  /// Called with the fraction of a stage that is done.
  using Progress = std::function<void(double)>;

  /// Checks all shapes. `dense` files are needed where targets are the dense model's outputs (Retarget), else empty.
  OptLayer(const OptShape& shape, std::array<Linear, kLinears> linears, std::array<Norm, kNorms> norms, const LayerFiles& pruned,
           const LayerFiles& dense);

  Linear& linear(LinearId id) { return linears_[kPruned][id]; }

  /// Runs a stage with the weights as they are now. The statistics replace those of the stage before.
  void Collect(Workers& workers, Stage stage, const Progress& progress);
  /// Of the stage that was run last.
  const InputStatistics& inputs() const { return *inputs_; }

  /// Where there are dense files: moves weights and bias of a linear of the last stage to what makes up for the layers before.
  void Retarget(Workers& workers, LinearId id, double damping);

  /// Computes the layer's output with the weights as they are now, and writes it to the disk.
  void Finish(Workers& workers, const Progress& progress);

 private:
  int64_t Width(Stage stage) const { return stage == Stage::kFeedForwardOut ? shape_.ffn : shape_.hidden; }
  struct Activations {
    Activations(const LayerFiles& files, int64_t floats);
    ActivationFile input, context, output;
  };

  void ComputeInputs(Side side, Stage stage, int64_t sequence, float* x);
  void ComputeTarget(LinearId id, int64_t sequence, const float* x, float* y);
  void AddTargets(Workers& workers, Stage stage, int64_t first, int64_t count, const Floats& shifted);
  void Attend(Side side, int64_t sequence, float* x);
  void AddAttention(Side side, int64_t sequence);
  void FeedForwardIn(Side side, int64_t sequence, float* x);
  void FeedForward(Side side, int64_t sequence, float* x);
  void FinishSide(Workers& workers, Side side, const Progress& progress);
  void Apply(Side side, LinearId id, const float* x, float* y, float beta) const;
  void Normalise(NormId id, const float* x, float* y) const;
  float* At(ActivationFile& file, int64_t sequence) const { return file.data() + sequence * shape_.length * shape_.hidden; }
  bool HasDense() const { return sides_[kDense] != nullptr; }

  OptShape shape_;
  std::array<std::array<Linear, kLinears>, kSides> linears_;
  std::array<Norm, kNorms> norms_;
  std::array<std::unique_ptr<Activations>, kSides> sides_;
  std::unique_ptr<InputStatistics> inputs_;
  std::array<std::unique_ptr<TargetStatistics>, kLinears> targets_;
};

/// Embeddings of all sequences: token and position rows, the token's through `project_in` (no bias) where it is not empty.
/// ids is [sequences, length]; token_table [vocabulary, embed], position_table [positions, hidden] with two unused rows first.
void EmbedSequences(Workers& workers, const OptShape& shape, const std::vector<int32_t>& ids, const Floats& token_table,
                    int64_t embed, const Floats& position_table, const Floats& project_in,
                    const std::string& output);

}  // namespace flashllm::pruning
