import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { copyCompanions } from '../../graph-passes/companions.js';
import { loadNative } from '../../provider/native.js';
import type { LinearPlaces, NativePruning, PrunerHandle, PruneStage } from '../../provider/native-pruning.js';
import { namesOf, requireNames, requireSignal, requireText } from '../arguments.js';
import { openCheckpoint } from '../checkpoint/index.js';
import { copyTensor, createSafetensors } from '../checkpoint/safetensors-writer.js';
import type { Checkpoint, CheckpointTensor } from '../checkpoint/types.js';
import { pathOf } from '../model-folder.js';
import { canonicalName } from '../opt/checkpoint-weights.js';
import { type OptConfig, readOptConfig } from '../opt/config.js';
import { loadTokenizer } from '../tokenizer.js';
import { type Calibration, type CalibrationSettings, loadCalibration } from './calibration.js';
import { type LayerCost, layerCost } from './cost.js';
import { createPruner, type PruneDeviceName } from './device.js';
import { LayerFiles, placeOf } from './layer-files.js';
import {
  checkPatterns,
  layerLinears,
  nativeOptions,
  type PruneSettings,
  type ResolvedSettings,
  resolveSettings,
  sparsityOf,
} from './options.js';
import { PruneFolder } from './prune-folder.js';
import { type LayerReport, type LinearReport, type PruningReport, reportSvg, totals } from './report.js';

/** How to prune a model. */
export interface PruneOptions extends PruneSettings {
  /** Folder of the pruned model, in the same layout; it must not hold anything yet. */
  readonly output: string;
  readonly calibration?: CalibrationSettings | undefined;
  /** What to compute on; default `auto`. */
  readonly device?: PruneDeviceName | undefined;
  /** On the CPU. Default: one a core. */
  readonly threads?: number | undefined;
  /**
   * Where activations lie while pruning, in a folder of the run's own: three times sequences × length × hidden_size × 4 bytes. Default: beside
   * the output. A run that goes on has them where it began.
   */
  readonly workFolder?: string | undefined;
  /** Throw an unfinished run away instead of going on with it. */
  readonly restart?: boolean | undefined;
  /** Called with the fraction of this run's work that is done, and what is being done. */
  readonly onProgress?: ((done: number, note: string) => void) | undefined;
  /** Aborting keeps the layers that are done, for the next run with the same settings. */
  readonly signal?: AbortSignal | undefined;
}

const NAMES = namesOf<PruneOptions>({
  sparsity: true,
  method: true,
  layerSparsity: true,
  scope: true,
  compensation: true,
  biasCorrection: true,
  damping: true,
  blockColumns: true,
  iterations: true,
  refinement: true,
  output: true,
  calibration: true,
  device: true,
  threads: true,
  workFolder: true,
  restart: true,
  onProgress: true,
  signal: true,
});

export interface PruneResult {
  readonly output: string;
  readonly report: PruningReport;
  /** Layers that an earlier, interrupted run had done. */
  readonly resumedLayers: number;
}

/** The stages of a layer, and which linears' inputs each gives. */
const stages: readonly { stage: PruneStage; first: number; end: number }[] = [
  { stage: 'attention-in', first: 0, end: 3 },
  { stage: 'attention-out', first: 3, end: 4 },
  { stage: 'feed-forward-in', first: 4, end: 5 },
  { stage: 'feed-forward-out', first: 5, end: 6 },
];

/**
 * Prunes the decoder linears of a Hugging Face OPT folder, layer by layer, each on what the pruned layers before it give. Memory is bounded by
 * one layer and its statistics; activations lie in mapped files. A run that was interrupted goes on where it stopped.
 *
 * @param source the folder, or its file: URL.
 * @throws ModelFolderError for a model, text or settings that cannot be used; OutputError where another run writes the output.
 */
export async function pruneOpt(source: string | URL, options: PruneOptions): Promise<PruneResult> {
  const folder = pathOf('folder', source);
  requireNames('pruneOpt', options, NAMES);
  requireText('output', options.output, 'the path of the folder to write');
  requireSignal(options.signal);
  const settings = resolveSettings(options);
  const config = await readOptConfig(folder);
  checkPatterns(settings, config.layers);
  const checkpoint = await openCheckpoint(folder);
  const calibration = await loadCalibration(
    await loadTokenizer(folder),
    config.maxPositions,
    options.calibration ?? {},
  );
  const target = new PruneFolder(options.output, options.workFolder);
  await target.refuseInput(folder);
  // Before the folder is made: what cannot be computed leaves none behind.
  const run = new PruneRun(folder, config, checkpoint, settings, calibration, target, options);
  return target.whileLocked(async () => {
    const done = await target.open(
      await fingerprint(folder, checkpoint, settings, calibration),
      options.restart ?? false,
    );
    const layers = await run.layers(done);
    const report: PruningReport = {
      settings,
      calibration: {
        sequences: calibration.sequences,
        length: calibration.length,
        seed: options.calibration?.seed ?? 0,
        file: options.calibration?.file ?? 'default',
      },
      device: run.device,
      layers,
      total: totals(layers),
    };
    await run.complete(report);
    return { output: options.output, report, resumedLayers: done.length };
  });
}

class PruneRun {
  private readonly native: NativePruning = loadNative();
  private readonly pruner: PrunerHandle;
  private readonly files: LayerFiles;
  private readonly cost: LayerCost;
  private costDone = 0;
  private costTotal = 1;

  constructor(
    private readonly folder: string,
    private readonly config: OptConfig,
    checkpoint: Checkpoint,
    private readonly settings: ResolvedSettings,
    private readonly calibration: Calibration,
    private readonly target: PruneFolder,
    private readonly options: PruneOptions,
  ) {
    this.files = new LayerFiles(config, checkpoint);
    this.cost = layerCost(config, settings, calibration.sequences, calibration.length);
    this.pruner = createPruner(this.native, options.device ?? 'auto', {
      hiddenSize: config.hiddenSize,
      ffnSize: config.ffnDim,
      heads: config.heads,
      preNorm: config.preNorm,
      activation: config.activation,
      sequences: calibration.sequences,
      length: calibration.length,
      threads: options.threads ?? 0,
    });
  }

  /** What it computes on, for people. */
  get device(): string {
    return this.native.describePruner(this.pruner);
  }

  /** Prunes the layers that are not done yet. */
  async layers(done: readonly LayerReport[]): Promise<LayerReport[]> {
    const reports = [...done];
    this.costTotal = this.cost.whole * (this.config.layers - done.length);
    if (done.length === 0) await this.embed();
    for (let layer = done.length; layer < this.config.layers; layer++) {
      const report = await this.layer(layer);
      await this.target.done(report);
      reports.push(report);
    }
    return reports;
  }

  /** Writes everything but the layers, and puts the folder in its place. */
  async complete(report: PruningReport): Promise<void> {
    const { target, config, signal } = { ...this, signal: this.options.signal };
    await this.shard(0, this.files.outside(), async (tensors) => {
      for (const [from, to] of tensors) await copyTensor(from, to, signal);
    });
    const map: Record<string, string> = {};
    let bytes = 0;
    for (let index = 0; index <= config.layers; index++) {
      for (const tensor of index === 0 ? this.files.outside() : this.files.ofLayer(index - 1)) {
        map[tensor.name] = this.shardName(index);
        bytes += tensor.byteLength;
      }
    }
    await target.write(
      'model.safetensors.index.json',
      `${JSON.stringify({ metadata: { total_size: bytes }, weight_map: map }, undefined, 2)}\n`,
    );
    await copyCompanions(this.folder, target.partial);
    await target.write('pruning.json', `${JSON.stringify(report, undefined, 2)}\n`);
    await target.write('pruning.svg', reportSvg(report));
    await target.complete();
  }

  private async embed(): Promise<void> {
    const output = `${this.target.hidden(0)}.tmp`;
    await this.native.embedSequences(this.pruner, { ids: this.calibration.ids, ...this.files.embedding(), output });
    await this.target.place(output, this.target.hidden(0));
  }

  private async layer(layer: number): Promise<LayerReport> {
    const started = performance.now();
    const linears: LinearReport[] = [];
    const sides = this.settings.compensation ? (['pruned', 'dense'] as const) : (['pruned'] as const);
    const activations = (side: 'pruned' | 'dense') => ({
      input: this.target.hidden(layer, side),
      context: this.target.context(side),
      output: `${this.target.hidden(layer + 1, side)}.tmp`,
    });
    await this.shard(layer + 1, this.files.ofLayer(layer), async (tensors) => {
      const pruned = new Set(layerLinears.flatMap((name) => [`${name}.weight`, `${name}.bias`]));
      for (const [from, to] of tensors) {
        if (!pruned.has(canonicalName(from.name).replace(/^layers\.\d+\./, ''))) await copyTensor(from, to);
      }
      await this.native.openLayer(this.pruner, {
        linears: this.files.linears(layer),
        norms: this.files.norms(layer),
        pruned: activations('pruned'),
        ...(this.settings.compensation && { dense: activations('dense') }),
      });
      const destinations = new Map(tensors.map(([from, to]) => [canonicalName(from.name), to]));
      for (const part of stages) {
        const { stage, first, end } = part;
        await this.step(this.cost.collect[stages.indexOf(part)] as number, `layer ${layer}, inputs`, (report, signal) =>
          this.native.collectInputs(this.pruner, stage, report, signal),
        );
        for (let i = first; i < end; i++) linears.push(await this.linear(layer, i, destinations));
      }
      const last = layer === this.config.layers - 1;
      // Nothing reads what the last layer gives.
      await this.step(this.cost.finish, `layer ${layer}, outputs`, async (report, signal) => {
        if (!last) await this.native.finishLayer(this.pruner, report, signal);
      });
      if (!last)
        for (const side of sides)
          await this.target.place(activations(side).output, this.target.hidden(layer + 1, side));
    });
    return { layer, linears, seconds: (performance.now() - started) / 1000 };
  }

  private async linear(
    layer: number,
    index: number,
    destinations: ReadonlyMap<string, CheckpointTensor>,
  ): Promise<LinearReport> {
    const started = performance.now();
    const name = layerLinears[index] as (typeof layerLinears)[number];
    const at = `layers.${layer}.${name}`;
    const sparsity = sparsityOf(this.settings, at);
    const weight = destinations.get(`${at}.weight`) as CheckpointTensor;
    const bias = destinations.get(`${at}.bias`);
    const destination: LinearPlaces = { weight: placeOf(weight), ...(bias && { bias: placeOf(bias) }) };
    const report = await this.step(this.cost.prune[index] as number, `layer ${layer}, ${name}`, (onProgress, signal) =>
      this.native.pruneLinear(
        this.pruner,
        name,
        nativeOptions(this.settings, sparsity),
        destination,
        onProgress,
        signal,
      ),
    );
    const [outFeatures, inFeatures] = weight.shape as [number, number];
    return { name, outFeatures, inFeatures, sparsity, ...report, seconds: (performance.now() - started) / 1000 };
  }

  /** One call of the addon, with its share of the progress, and cancelled by the signal. */
  private async step<T>(
    cost: number,
    note: string,
    work: (onProgress: (millionths: number) => void, signal: { readonly aborted: boolean }) => Promise<T>,
  ): Promise<T> {
    const { signal, onProgress } = this.options;
    signal?.throwIfAborted();
    try {
      return await work(
        (millionths) => onProgress?.((this.costDone + (cost * millionths) / 1e6) / this.costTotal, note),
        signal ?? { aborted: false },
      );
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      this.costDone += cost;
      onProgress?.(this.costDone / this.costTotal, note);
    }
  }

  /** Makes one file of weights: `fill` gets each tensor with its place in the new file. */
  private async shard(
    index: number,
    tensors: readonly CheckpointTensor[],
    fill: (tensors: (readonly [CheckpointTensor, CheckpointTensor])[]) => Promise<void>,
  ): Promise<void> {
    const path = this.target.file(this.shardName(index));
    const temporary = `${path}.tmp`;
    const placed = new Map((await createSafetensors(temporary, tensors)).map((tensor) => [tensor.name, tensor]));
    await fill(tensors.map((tensor) => [tensor, placed.get(tensor.name) as CheckpointTensor]));
    await this.target.place(temporary, path);
  }

  /** The first file holds what is in no layer, then one a layer. */
  private shardName(index: number): string {
    const number = (value: number) => String(value).padStart(5, '0');
    return `model-${number(index + 1)}-of-${number(this.config.layers + 1)}.safetensors`;
  }
}

/** Everything that decides the result, as one text: what an unfinished run must agree with to be taken up. */
async function fingerprint(
  folder: string,
  checkpoint: Checkpoint,
  settings: ResolvedSettings,
  calibration: Calibration,
): Promise<string> {
  const paths = new Set([...checkpoint.tensors.values()].map((tensor) => tensor.path));
  const files = await Promise.all(
    [...paths].sort().map(async (path) => {
      const { size, mtimeMs } = await stat(path);
      return [path, size, mtimeMs];
    }),
  );
  const config = await readFile(join(folder, 'config.json'), 'utf8');
  const hash = createHash('sha256').update(config).update(calibration.ids).digest('hex');
  return JSON.stringify({
    version: 1,
    files,
    settings,
    sequences: calibration.sequences,
    length: calibration.length,
    hash,
  });
}
