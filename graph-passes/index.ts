/** Rewriting of ONNX models: pruned linear layers become `ai.flashllm::SparseMatMul`. */
export type { PruneSpec } from '../provider/native.js';
export { copyCompanions } from './companions.js';
export { findModels, inspectFolder, type ModelFile, type RewriteFolderOptions, rewriteFolder } from './folder.js';
export { ModelError, OutputError } from './onnx/errors.js';
export type { SavedModel } from './onnx/save.js';
export type { Trace, TraceEvent } from './passes/rule.js';
export { BREAK_EVEN_SPARSITY } from './policy.js';
export type { InputSizes } from './random-inputs.js';
export {
  type InspectOptions,
  type InspectReport,
  inspectModel,
  type LayerReport,
  type Progress,
  type RewriteOptions,
  type RewriteReport,
  rewriteModel,
} from './rewrite.js';
export { type Mismatch, type OutputDifference, type VerifyOptions, type VerifyReport, verifyModels } from './verify.js';
export type { ValueTypeChoice } from './weight-job.js';
