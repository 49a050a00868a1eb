import { access } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import {
  companionsOf,
  copyCompanions,
  declareDataFiles,
  removeStaleCompanions,
  writeWhole,
} from '../../graph-passes/companions.js';
import type { ModelProto } from '../../graph-passes/onnx/proto.js';
import { refuseOutputs, saveModel } from '../../graph-passes/onnx/save.js';
import { namesOf, requireChoice, requireNames, requireSignal, requireText } from '../arguments.js';
import { openCheckpoint } from '../checkpoint/index.js';
import { ModelFolderError } from '../errors.js';
import { pathOf } from '../model-folder.js';
import { buildTokenizerJson } from '../tokenizer-json.js';
import { CheckpointWeights } from './checkpoint-weights.js';
import { headDim, type OptConfig, parseOptConfig, readOptConfig } from './config.js';
import { buildOptModel, defaultAttention } from './graph.js';
import { type OptAttention, type OptDtype, optAttentions, optDtypes } from './graph-context.js';
import { type RandomOptions, RandomWeights } from './random-weights.js';

const modelFile = 'model.onnx';

/** What exports have in common. */
export interface ExportOptions {
  /** Folder for model.onnx, model.onnx_data and the files beside; made if missing. Tokenizer files of an earlier model there are removed. */
  readonly output: string;
  /** Type of activations, cache and logits; default float32. */
  readonly dtype?: OptDtype | undefined;
  /**
   * Op that computes attention; default GroupQueryAttention, for heads that are no multiple of 8 elements ONNX
   * Attention (docs/opt-graph.md).
   */
  readonly attention?: OptAttention | undefined;
  /** Called with the bytes of weights written and those to write. */
  readonly onProgress?: ((bytesDone: number, bytesTotal: number) => void) | undefined;
  /** Aborting leaves nothing behind. */
  readonly signal?: AbortSignal | undefined;
}

/** What an export wrote. */
export interface ExportResult {
  readonly modelPath: string;
  readonly modelBytes: number;
  readonly dataBytes: number;
  readonly config: OptConfig;
  readonly dtype: OptDtype;
  readonly attention: OptAttention;
  /** Names of the files that were written beside the model. */
  readonly companions: readonly string[];
  /** Tensors of the checkpoint that the model has no place for. */
  readonly unusedTensors: readonly string[];
}

/**
 * Exports a Hugging Face OPT checkpoint (safetensors or pytorch_model.bin, sharded or not) to an ONNX decoder with
 * past. Weights stream from file to file: memory does not grow with the model. No output appears before it is whole.
 *
 * @param source the folder, or its file: URL.
 * @throws ModelFolderError where the folder's content is not a usable OPT model, or an option is none of its; ModelError for a file beside that cannot be taken along;
 * OutputError where the output cannot be written.
 */
export async function exportOpt(source: string | URL, options: ExportOptions): Promise<ExportResult> {
  const folder = pathOf('folder', source);
  requireOptions(options);
  const config = await readOptConfig(folder);
  const checkpoint = await openCheckpoint(folder);
  const { dtype = 'float32' } = options;
  const weights = new CheckpointWeights(checkpoint, dtype);
  const attention = chooseAttention(config, options);
  const model = buildOptModel(config, weights, { dtype, attention });
  const planned = await planCompanions(folder, options.output);
  const saved = await save(model, options, checkpoint.files, planned.names);
  await writeCompanions(folder, options.output, planned);
  // A tied model's lm_head, which torch saves all the same, is the embedding again.
  const unusedTensors = weights.unused().filter((name) => !(config.tied && name === 'lm_head.weight'));
  return { ...saved, config, dtype, attention, companions: planned.names, unusedTensors };
}

/**
 * Writes an OPT model of random weights: for benchmarks of sizes that one does not have.
 *
 * @param configJson config.json of the model, such as `optConfigJson('1.3b')`; goes along as config.json.
 */
export async function exportRandomOpt(
  configJson: Record<string, unknown>,
  random: RandomOptions,
  options: ExportOptions,
): Promise<ExportResult> {
  requireOptions(options);
  if (!(random.sparsity >= 0 && random.sparsity < 1))
    throw new ModelFolderError('USAGE', `sparsity is ${random.sparsity}, expected a number from 0 to below 1`);
  const config = parseOptConfig(configJson);
  const attention = chooseAttention(config, options);
  const { dtype = 'float32' } = options;
  const weights = new RandomWeights(random, dtype);
  const model = buildOptModel(config, weights, { dtype, attention });
  const companions = ['config.json'];
  const saved = await save(model, options, [], companions);
  await removeStaleCompanions(options.output, []);
  await writeWhole(join(options.output, 'config.json'), `${JSON.stringify(configJson, undefined, 2)}\n`);
  await declareDataFiles(options.output, [modelFile]);
  return { ...saved, config, dtype, attention, companions, unusedTensors: [] };
}

const NAMES = namesOf<ExportOptions>({
  ...{ output: true, dtype: true, attention: true, onProgress: true, signal: true },
});

function requireOptions(options: ExportOptions): void {
  requireNames('export', options, NAMES);
  requireText('output', options.output, 'the path of the folder to write');
  requireChoice('dtype', options.dtype, optDtypes);
  requireChoice('attention', options.attention, optAttentions);
  requireSignal(options.signal);
}

function chooseAttention(config: OptConfig, { attention }: ExportOptions): OptAttention {
  if (attention === 'group-query' && headDim(config) % 8 !== 0) {
    throw new ModelFolderError(
      'USAGE',
      `GroupQueryAttention needs heads of a multiple of 8 elements, this model's have ${headDim(config)}; export with --attention onnx`,
    );
  }
  return attention ?? defaultAttention(config);
}

/** @param companions names of the files that go along: what is in their way is told before the weights are written. */
async function save(
  model: ModelProto,
  options: ExportOptions,
  inputs: readonly string[],
  companions: readonly string[],
): Promise<Pick<ExportResult, 'modelPath' | 'modelBytes' | 'dataBytes'>> {
  refuseOutputs(
    companions.map((name) => join(options.output, name)),
    inputs,
  );
  const { path, modelBytes, dataBytes } = await saveModel(model, {
    path: join(options.output, modelFile),
    inputs,
    signal: options.signal,
    ...(options.onProgress ? { onProgress: options.onProgress } : {}),
  });
  return { modelPath: path, modelBytes, dataBytes };
}

/** What goes along with a model. */
interface Companions {
  /** Names of all files that are written. */
  readonly names: readonly string[];
  /** What is to be in tokenizer.json, where the source has only vocab.json and merges.txt. */
  readonly tokenizer: string | undefined;
}

async function planCompanions(folder: string, output: string): Promise<Companions> {
  const names = isSame(folder, output) ? ['config.json'] : companionsOf(folder);
  const [whole, ...parts] = await Promise.all(
    ['tokenizer.json', 'vocab.json', 'merges.txt'].map((part) => exists(join(folder, part))),
  );
  if (whole || !parts.every(Boolean)) return { names, tokenizer: undefined };
  const tokenizer = `${JSON.stringify(await buildTokenizerJson(folder))}\n`;
  return { names: [...names, 'tokenizer.json'], tokenizer };
}

async function writeCompanions(folder: string, output: string, { names, tokenizer }: Companions): Promise<void> {
  if (!isSame(folder, output)) {
    await copyCompanions(folder, output);
    await removeStaleCompanions(output, names);
  }
  await declareDataFiles(output, [modelFile]);
  if (tokenizer !== undefined) await writeWhole(join(output, 'tokenizer.json'), tokenizer);
}

function isSame(folder: string, output: string): boolean {
  return resolve(folder) === resolve(output);
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
