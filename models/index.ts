export { type Cache, Decoder, type DecoderShape, Logits, type StepInput } from './decoder.js';
export { ModelFolderError, type ModelFolderErrorKind } from './errors.js';
export type { Generation } from './generation/generation.js';
export type { GenerateOptions, SamplingOptions, Streamer } from './generation/options.js';
export { Sampler, type TokenLogprob } from './generation/sampling.js';
export { QueueFullError, Scheduler, type SchedulerOptions } from './generation/scheduler.js';
export type { FinishReason, GeneratedPiece, GeneratedText } from './generation/sequence.js';
export { TextAssembler } from './generation/text-assembler.js';
export { readGeneratorConfig } from './model-folder.js';
export { headDim, type OptConfig, parseOptConfig, readOptConfig } from './opt/config.js';
export { type ExportOptions, type ExportResult, exportOpt, exportRandomOpt } from './opt/export.js';
export type { OptAttention, OptDtype } from './opt/graph-context.js';
export type { RandomOptions } from './opt/random-weights.js';
export { type OptSize, optConfig, optConfigJson, optSizes } from './opt/sizes.js';
export { measurePerplexity, type Perplexity, type PerplexityOptions } from './perplexity.js';
export {
  type CalibrationSettings,
  type LayerReport,
  type LayerSparsity,
  type LinearReport,
  type PruneDeviceName,
  type PruneMethod,
  type PruneOptions,
  type PruneResult,
  type PruneScope,
  type PruneSettings,
  type PruningReport,
  pruneMethods,
  pruneOpt,
} from './pruning/index.js';
export {
  shippedCalibrationText,
  shippedHeldOutText,
  shippedInDomainText,
  shippedModel,
  shippedSparseModel,
} from './shipped.js';
export { type GeneratorConfig, type Prompt, TextGenerator } from './text-generator.js';
export { openTextModel, type TextModel } from './text-model.js';
export { loadTokenizer, type Tokenizer } from './tokenizer.js';
