/** Rewrites a model: linear layers with enough zeros become SparseMatMul, everything else stays as it is. */
import type { PruneSpec } from '../provider/native.js';
import { removeIfUnused, removeUnusedInitializers } from './clean-up.js';
import { declareSparseOp, setChecksums } from './declare.js';
import { findLayers, type Layer, WeightJobs } from './layers.js';
import { type LoadedModel, loadInput } from './onnx/load.js';
import { type SavedModel, saveModel } from './onnx/save.js';
import { checkOptions } from './options.js';
import { isOutputLayer } from './output-layer.js';
import { packedLayers } from './packed-layers.js';
import { PackedWeights } from './packed-weights.js';
import { fuseBias } from './passes/fuse-bias.js';
import { fuseRelu } from './passes/fuse-relu.js';
import { fuseResidual } from './passes/fuse-residual.js';
import { applyRules, contextOf, type Rule, type RuleContext, type Trace } from './passes/rule.js';
import { BREAK_EVEN_SPARSITY, type Decision, decide, formatShare, isSelected, type Policy } from './policy.js';
import { rewriteChecks } from './rewrite-options.js';
import { requireMatches } from './selection.js';
import type { ValueType } from './sparse-op.js';
import { WeightFiles } from './weight-files.js';
import type { ValueTypeChoice, WeightJob } from './weight-job.js';

export interface Progress {
  phase: 'read' | 'write';
  bytesDone: number;
  bytesTotal: number;
}

export interface InspectOptions {
  /** The .onnx file. */
  input: string;
  /** Least share of zeros of a layer that becomes sparse, 0 to 1. Default: where sparse is no slower than dense. */
  minSparsity?: number;
  /** Globs on node and weight names. A layer must match one of these, if there are any. */
  include?: readonly string[];
  /** Globs on node and weight names of layers that stay dense. */
  exclude?: readonly string[];
  /** Type of stored values; a layer with a value beyond it stays dense. Default `auto`: the smallest that holds every value of the layer exactly. */
  weights?: ValueTypeChoice;
  /** Prunes before packing. The output layer (vocabulary) is left out unless `include` names layers. */
  prune?: PruneSpec;
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
  /** Hears of every rule that was tried on a node. */
  trace?: Trace;
}

export interface RewriteOptions extends InspectOptions {
  /** The .onnx file to write; its data goes beside it, to the same name with `_data` appended. */
  output: string;
  /** Whether the model carries SparseMatMul as a function of standard ops, to run without this package. Default true. */
  portable?: boolean;
}

/** One linear layer and what becomes of it. */
export interface LayerReport {
  name: string;
  weight: string;
  /** Undefined where the weight could not be looked at. */
  outFeatures: number | undefined;
  inFeatures: number | undefined;
  /** Share of zeros after pruning, 0 to 1; undefined where the weight was not read. */
  sparsity: number | undefined;
  bytesBefore: number | undefined;
  bytesAfter: number | undefined;
  valueType: ValueType | undefined;
  decision: 'sparse' | 'dense';
  reason: string;
}

export interface InspectReport {
  input: string;
  layers: LayerReport[];
  /** Bytes of the distinct weights of all layers, as they are and as they would be. */
  bytesBefore: number;
  bytesAfter: number;
  /** How the layers were pruned before, where that was asked for. */
  prune?: PruneSpec;
  /** What to do where no layer is, or would be, sparse. */
  hint?: string;
}

export interface RewriteReport extends InspectReport {
  output: SavedModel;
  /** How often each fusing rule applied. */
  fused: Record<string, number>;
  /** Whether the model also runs without this package. */
  portable: boolean;
}

interface Plan {
  model: LoadedModel;
  context: RuleContext;
  layers: { layer: Layer; job: WeightJob; decision: Decision }[];
  report: InspectReport;
}

/**
 * What {@link rewriteModel} would do, with the same options; nothing is written.
 * @throws ModelError where the model is malformed, InvalidOptionError for an option that is unknown or not what it should be, or a glob that
 * matches no layer.
 */
export async function inspectModel(options: InspectOptions): Promise<InspectReport> {
  checkOptions('inspectModel', options, rewriteChecks, ['input']);
  const model = loadInput(options.input);
  requireMatches(options, [model]);
  return inspectLoaded(model, options);
}

/** As {@link inspectModel}, of a model that is loaded already, with options that are checked already. */
export async function inspectLoaded(
  model: LoadedModel,
  options: Omit<InspectOptions, 'input'>,
): Promise<InspectReport> {
  return withFiles(options.signal, async (files) => (await plan(model, options, files)).report);
}

/**
 * Rewrites `input` to `output`. Inputs, outputs and their names stay; weights that are used otherwise too keep their dense
 * copy. Nothing is left behind on an error or an abort.
 * @throws ModelError where the model is malformed, OutputError where the output cannot be written, InvalidOptionError as
 * {@link inspectModel}.
 */
export async function rewriteModel(options: RewriteOptions): Promise<RewriteReport> {
  checkOptions('rewriteModel', options, rewriteChecks, ['input', 'output']);
  const model = loadInput(options.input);
  requireMatches(options, [model]);
  return rewriteLoaded(model, options);
}

/** As {@link rewriteModel}, of a model that is loaded already, with options that are checked already; its graph is rewritten in memory, too. */
export async function rewriteLoaded(
  model: LoadedModel,
  options: Omit<RewriteOptions, 'input'>,
): Promise<RewriteReport> {
  return withFiles(options.signal, async (files) => {
    const planned = await plan(model, options, files);
    const packed = convert(planned);
    const fused = fuse(planned.context, options.trace ?? (() => {}));
    removeUnusedInitializers(planned.context.view, planned.context.irVersion);
    const portable = declareSparseOp(planned.context.view, packed, options.portable ?? true);
    const output = await saveModel(planned.model.proto, {
      path: options.output,
      inputs: planned.model.files,
      signal: options.signal,
      onProgress: (bytesDone, bytesTotal) => options.onProgress?.({ phase: 'write', bytesDone, bytesTotal }),
      beforeEncode: () => setChecksums(planned.context.view, packed),
    });
    return { ...planned.report, output, fused, portable };
  });
}

/** Runs `work` with scratch files, which are gone afterwards. An abort shows as the signal's reason, whoever noticed it first. */
async function withFiles<T>(signal: AbortSignal | undefined, work: (files: WeightFiles) => Promise<T>): Promise<T> {
  const files = new WeightFiles();
  try {
    return await work(files);
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    await files.dispose();
  }
}

async function plan(model: LoadedModel, options: Omit<InspectOptions, 'input'>, files: WeightFiles): Promise<Plan> {
  const context = contextOf(model.proto);
  const { view } = context;
  const policy: Policy = {
    minSparsity: options.minSparsity ?? BREAK_EVEN_SPARSITY,
    include: options.include ?? [],
    exclude: options.exclude ?? [],
    weights: options.weights ?? 'auto',
  };
  const { layers, refused } = findLayers(context, options.trace ?? (() => {}));
  const jobs = new WeightJobs(files, options.prune);
  const selected: { layer: Layer; job: WeightJob }[] = [];
  const reports = new Map<Layer, LayerReport>();
  for (const layer of layers) {
    if (!isSelected(policy, layer)) reports.set(layer, denseReport(layer, 'not selected'));
    else if (options.prune && policy.include.length === 0 && isOutputLayer(view, layer)) {
      const reason = 'the output layer is not pruned unless --include names it';
      selected.push({ layer, job: await jobs.of(layer, false) });
      reports.set(layer, denseReport(layer, reason));
    } else selected.push({ layer, job: await jobs.of(layer, true) });
  }
  await analyzeAll(jobs.all(), options);
  const decided = selected.map(({ layer, job }) => ({ layer, job, decision: decide(policy, job) }));
  for (const { layer, job, decision } of decided) {
    const known = reports.get(layer);
    reports.set(
      layer,
      layerReport(layer, job, known && !decision.sparse ? { ...decision, reason: known.reason } : decision),
    );
  }
  const rows = layers.map((layer) => reports.get(layer) as LayerReport);
  const packed = packedLayers(view);
  const packedBytes = packed.reduce((sum, { bytesAfter = 0 }) => sum + bytesAfter, 0);
  const { bytesBefore, bytesAfter } = totals(decided);
  const report = {
    input: model.path,
    layers: [...packed, ...rows, ...refused.map(refusedReport)],
    bytesBefore: bytesBefore + packedBytes,
    bytesAfter: bytesAfter + packedBytes,
    ...(options.prune ? { prune: options.prune } : {}),
    ...(packed.length === 0 ? hintOf(policy, decided, options.prune) : {}),
  };
  return { model, context, layers: decided, report };
}

/** What to do where each layer that was looked at has too few zeros; nothing where there is another reason why it stays dense. */
function hintOf(
  { minSparsity, include, exclude }: Policy,
  decided: Plan['layers'],
  prune: PruneSpec | undefined,
): { hint?: string } {
  if (decided.length === 0 || decided.some(({ job }) => job.sparsity >= minSparsity)) return {};
  const which = include.length + exclude.length > 0 ? 'no layer that is selected' : 'no layer';
  const advice = prune
    ? ` after pruning to ${formatShare(prune.sparsity)}; prune to more`
    : '; prune the checkpoint first (flashllm prune)';
  return { hint: `${which} has ${formatShare(minSparsity)} zeros${advice}` };
}

async function analyzeAll(
  jobs: readonly WeightJob[],
  { weights = 'auto', onProgress, signal }: Pick<InspectOptions, 'weights' | 'onProgress' | 'signal'>,
): Promise<void> {
  const bytesTotal = jobs.reduce((sum, job) => sum + job.denseBytes, 0);
  let done = 0;
  for (const job of jobs) {
    signal?.throwIfAborted();
    const report = (bytes: number) => onProgress?.({ phase: 'read', bytesDone: done + bytes, bytesTotal });
    await job.analyze(weights, report, signal);
    done += job.denseBytes;
    onProgress?.({ phase: 'read', bytesDone: done, bytesTotal });
  }
  signal?.throwIfAborted();
}

/** Replaces the layers that are to be sparse. */
function convert({ context, layers }: Plan): PackedWeights {
  const packed = new PackedWeights(context.view);
  for (const { layer, job, decision } of layers) {
    if (!decision.sparse) continue;
    const inputs = [...(layer.node.input ?? [])];
    layer.rule.rewrite(context, layer.scope, layer.node, layer.linear, packed.of(layer, job, decision.type));
    for (const name of inputs) removeIfUnused(context.view, layer.scope, name);
  }
  context.view.settle();
  return packed;
}

const FUSING_RULES: readonly Rule<unknown>[] = [fuseBias, fuseRelu, fuseResidual] as Rule<unknown>[];

function fuse(context: RuleContext, trace: Trace): Record<string, number> {
  const fused: Record<string, number> = Object.fromEntries(FUSING_RULES.map(({ name }) => [name, 0]));
  applyRules(context, FUSING_RULES, (event) => {
    if (event.applied) fused[event.rule] = (fused[event.rule] ?? 0) + 1;
    trace(event);
  });
  return fused;
}

function totals(decided: Plan['layers']): { bytesBefore: number; bytesAfter: number } {
  const before = new Map(decided.map(({ job }) => [job, job.denseBytes]));
  const after = new Map(decided.map(({ job, decision }) => [job, decision.bytes]));
  const sum = (bytes: Map<WeightJob, number>) => [...bytes.values()].reduce((a, b) => a + b, 0);
  return { bytesBefore: sum(before), bytesAfter: sum(after) };
}

function layerReport(layer: Layer, job: WeightJob, decision: Decision): LayerReport {
  return {
    name: layer.name,
    weight: layer.weightName,
    outFeatures: layer.linear.outFeatures,
    inFeatures: layer.linear.inFeatures,
    sparsity: job.sparsity,
    bytesBefore: job.denseBytes,
    bytesAfter: decision.bytes,
    valueType: decision.sparse ? decision.type : undefined,
    decision: decision.sparse ? 'sparse' : 'dense',
    reason: decision.reason,
  };
}

function denseReport(layer: Layer, reason: string): LayerReport {
  return {
    ...refusedReport({ name: layer.name, weightName: layer.weightName, reason }),
    outFeatures: layer.linear.outFeatures,
    inFeatures: layer.linear.inFeatures,
  };
}

function refusedReport({
  name,
  weightName,
  reason,
}: {
  name: string;
  weightName: string;
  reason: string;
}): LayerReport {
  return {
    name,
    weight: weightName,
    outFeatures: undefined,
    inFeatures: undefined,
    sparsity: undefined,
    bytesBefore: undefined,
    bytesAfter: undefined,
    valueType: undefined,
    decision: 'dense',
    reason,
  };
}
