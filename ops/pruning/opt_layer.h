// One decoder layer of an OPT model on calibration text: computed in stages, each of which ends at the inputs of
// linears, so that those can be pruned before what follows is computed with them.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/pruning/activation_file.h"
#include "ops/pruning/device.h"
#include "ops/pruning/input_statistics.h"
#include "ops/pruning/prune.h"
#include "ops/pruning/target_statistics.h"

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
  kAttentionIn,     // kQuery, kKey and kValue
  kAttentionOut,    // kAttentionOut
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

/// The layer twice: with the weights as they are being pruned, on what the pruned layers before give, and as it was, on
/// what the dense layers before give. The second is what the first should come close to.
enum Side { kPruned, kDense, kSides };

/// Not safe for several threads at once. Throws PruningError.
class OptLayer {
 public:
  /// Checks all shapes. `dense` files are needed where targets are the dense model's outputs, else empty.
  OptLayer(Device& device, const OptShape& shape, std::array<Linear, kLinears> linears, std::array<Norm, kNorms> norms,
           const LayerFiles& pruned, const LayerFiles& dense);

  const Linear& linear(LinearId id) const { return linears_[id]; }

  /// Runs a stage with the weights as they are now. The statistics replace those of the stage before.
  void Collect(Stage stage, const Progress& progress);

  /// Prunes a linear of the last stage. Where there are dense files, its weights and bias move to what makes up for the
  /// layers before first; a linear that is sparse enough stays as it is.
  PruneReport Prune(LinearId id, const PruneOptions& options, const Progress& progress);

  /// Computes the layer's output with the weights as they are now, and writes it to the disk.
  void Finish(const Progress& progress);

 private:
  int64_t Width(Stage stage) const { return stage == Stage::kFeedForwardOut ? shape_.ffn : shape_.hidden; }
  /// [sequences, length, hidden]: in a mapped file, or where the device has room to spare, there.
  struct Activation {
    std::unique_ptr<ActivationFile> file;  // none where all of it is on the device and nobody else reads it
    Array<float> resident;
  };
  struct Activations {
    Activation input, context, output;
  };
  /// A linear or a norm on the device.
  struct Parameters {
    Array<float> weight, bias;
  };
  /// Sequences that are computed together.
  struct Group {
    int64_t first = 0;
    int64_t count = 0;
  };

  void ForGroups(const Progress& progress, const std::function<void(const Group&)>& body) const;
  int64_t Tokens(const Group& group) const { return group.count * shape_.length; }
  int64_t Elements() const { return shape_.sequences * shape_.length * shape_.hidden; }
  int64_t At(const Group& group) const { return group.first * shape_.length * shape_.hidden; }
  std::unique_ptr<Activations> OpenActivations(const LayerFiles& files) const;
  Array<float> Resident() const;
  Array<float> Load(const Activation& from, const Group& group) const;
  void Save(const Array<float>& x, const Group& group, Activation* to) const;

  Array<float> ComputeInputs(Side side, Stage stage, const Group& group);
  Array<float> ComputeTarget(LinearId id, const Group& group, const Array<float>& x);
  void AddTargets(Stage stage, const Group& group, const Array<float>& shifted);
  Array<float> Attend(Side side, const Group& group);
  Array<float> AddAttention(Side side, const Group& group);
  Array<float> BlockIn(NormId id, Array<float> stream) const;
  Array<float> FeedForward(Side side, const Array<float>& inputs);
  void FinishSide(Side side, const Progress& progress);
  Array<float> Apply(Side side, LinearId id, const Array<float>& x) const;
  void AddLinear(Side side, LinearId id, const Array<float>& x, Array<float>* y) const;
  void Normalise(NormId id, const Array<float>& x, Array<float>* y) const;
  bool HasDense() const { return sides_[kDense] != nullptr; }

  Device& device_;
  OptShape shape_;
  std::array<Linear, kLinears> linears_;  // as they are being pruned
  std::array<std::array<Parameters, kLinears>, kSides> weights_;
  std::array<Parameters, kNorms> norms_;
  std::array<std::unique_ptr<Activations>, kSides> sides_;
  std::unique_ptr<InputStatistics> inputs_;
  std::array<std::unique_ptr<TargetStatistics>, kLinears> targets_;
};

/// Embeddings of all sequences: token and position rows, the token's through `project_in` (no bias) where it is not
/// empty. ids is [sequences, length]; token_table [vocabulary, embed], position_table [positions, hidden] with two
/// unused rows first.
void EmbedSequences(Workers& workers, const OptShape& shape, const std::vector<int32_t>& ids, const Floats& token_table,
                    int64_t embed, const Floats& position_table, const Floats& project_in, const std::string& output);

}  // namespace flashllm::pruning
