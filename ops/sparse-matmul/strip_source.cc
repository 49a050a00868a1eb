#include "ops/sparse-matmul/strip_source.h"

#include <string>

namespace flashllm {
namespace {

void DropBelow(float* values, int64_t count, uint32_t key) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = MagnitudeKey(BitsOfFloat(values[i])) < key ? 0.0f : values[i];
  }
}

void DropTies(float* values, int64_t count, Threshold threshold) {
  for (int64_t i = 0; i < count && threshold.ties > 0; ++i) {
    if (MagnitudeKey(BitsOfFloat(values[i])) != threshold.key) continue;
    values[i] = 0;
    --threshold.ties;
  }
}

}  // namespace

StripSource::StripSource(const std::vector<WeightSegment>& segments, const WeightOptions& options,
                         const PackControl& control)
    : options_(options), reader_(segments, options.scale), runner_(reader_, control, Passes()) {
  const double sparsity = options.prune.sparsity;
  if (options.prune.enabled && !(sparsity >= 0 && sparsity <= 1)) {
    throw PackError("sparsity is " + std::to_string(sparsity) + ", expected 0 to 1");
  }
  if (options.prune.enabled && options.prune.scope == PruneScope::kLayer) SelectLayerThreshold();
}

void StripSource::Read(int64_t begin, int64_t end, Worker* worker) const {
  worker->dense.resize(static_cast<size_t>((end - begin) * reader_.in_features()));
  reader_.Read(begin, end, worker->dense.data(), &worker->read);
}

void StripSource::Prune(int64_t strip, int64_t rows, Worker* worker) {
  if (!options_.prune.enabled) return;
  const int64_t columns = reader_.in_features();
  if (options_.prune.scope == PruneScope::kRow) {
    const int64_t drop = PruneCount(options_.prune.sparsity, columns);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = worker->dense.data() + r * columns;
      const Threshold threshold = SelectRow(row, columns, drop, &worker->scratch);
      DropTies(row, columns, threshold);
      DropBelow(row, columns, threshold.key);
    }
    return;
  }
  float* values = worker->dense.data();
  const int64_t count = rows * columns;
  DropBelow(values, count, threshold_.key);
  int64_t ties = 0;
  for (int64_t i = 0; i < count; ++i) ties += MagnitudeKey(BitsOfFloat(values[i])) == threshold_.key;
  const int64_t before = ties_.Take(strip, ties);
  DropTies(values, count, {threshold_.key, threshold_.ties - before});
}

int StripSource::Passes() const {
  const bool layer = options_.prune.enabled && options_.prune.scope == PruneScope::kLayer;
  return !layer ? 1 : reader_.values_are_short() ? 2 : 3;
}

void StripSource::SelectLayerThreshold() {
  const int64_t drop = PruneCount(options_.prune.sparsity, reader_.out_features() * reader_.in_features());
  LayerSelector selector;
  while (!selector.done()) {
    if (drop == 0) {
      selector.NextPass(drop, true);
      break;
    }
    std::vector<LayerSelector> selectors(static_cast<size_t>(runner_.threads()), selector);
    std::vector<Worker> workers(selectors.size());
    runner_.Pass([&](int64_t, int64_t begin, int64_t end, int worker) {
      Read(begin, end, &workers[worker]);
      selectors[worker].Count(workers[worker].dense.data(), (end - begin) * reader_.in_features());
    });
    for (const LayerSelector& counted : selectors) selector.Merge(counted);
    selector.NextPass(drop, reader_.values_are_short());
  }
  threshold_ = selector.threshold();
}

}  // namespace flashllm
