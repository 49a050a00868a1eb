export type { CalibrationSettings } from './calibration.js';
export { type PruneDeviceName, parsePruneDevice } from './device.js';
export {
  type LayerSparsity,
  type PruneMethod,
  type PruneScope,
  type PruneSettings,
  parseLayerSparsity,
  pruneMethods,
  pruneScopes,
  type ResolvedSettings,
} from './options.js';
export { type PruneOptions, type PruneResult, pruneOpt } from './prune.js';
export { type LayerReport, type LinearReport, type PruningReport, reportSvg } from './report.js';
