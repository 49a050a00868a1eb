import { randomBytes } from 'node:crypto';
import { access, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { ModelProto } from '../../graph-passes/onnx/proto.js';
import { saveModel } from '../../graph-passes/onnx/save.js';
import { openCheckpoint } from '../checkpoint/index.js';
import { ModelFolderError } from '../errors.js';
import { buildTokenizerJson } from '../tokenizer-json.js';
import { CheckpointWeights } from './checkpoint-weights.js';
import { headDim, type OptConfig, parseOptConfig, readOptConfig } from './config.js';
import { buildOptModel, defaultAttention } from './graph.js';
import type { OptAttention, OptDtype } from './graph-context.js';
import { type RandomOptions, RandomWeights } from './random-weights.js';

/** What exports have in common. */
export interface ExportOptions {
  /** Folder for model.onnx, model.onnx_data and the files beside; made if missing. */
  readonly output: string;
  /** Type of activations, cache and logits; default float32. */
  readonly dtype?: OptDtype | undefined;
  /**
   * Op that computes attention; default ONNX Attention for float32, GroupQueryAttention for float16 (docs/opt-
   * graph.md).
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
  readonly attention: OptAttention;
  /** Names of the files that were written beside the model. */
  readonly companions: readonly string[];
  /** Tensors of the checkpoint that the model has no place for. */
  readonly unusedTensors: readonly string[];
}

/** Files of a Hugging Face folder that go along with the model. */
export const companionFiles: readonly string[] = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
];

/**
 * Exports a Hugging Face OPT checkpoint (safetensors or pytorch_model.bin, sharded or not) to an ONNX decoder with
 * past. Weights stream from file to file: memory does not grow with the model. No output appears before it is whole.
 *
 * @throws ModelFolderError where the folder's content is not a usable OPT model; OutputError where the output cannot
 * be written.
 */
export async function exportOpt(folder: string, options: ExportOptions): Promise<ExportResult> {
  const config = await readOptConfig(folder);
  const checkpoint = await openCheckpoint(folder);
  const weights = new CheckpointWeights(checkpoint, options.dtype ?? 'float32');
  const attention = chooseAttention(config, options);
  const model = buildOptModel(config, weights, { dtype: options.dtype ?? 'float32', attention });
  const saved = await save(model, options, checkpoint.files);
  const companions = await copyCompanions(folder, options.output);
  // A tied model's lm_head, which torch saves all the same, is the embedding again.
  const unusedTensors = weights.unused().filter((name) => !(config.tied && name === 'lm_head.weight'));
  return { ...saved, config, attention, companions, unusedTensors };
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
  if (!(random.sparsity >= 0 && random.sparsity < 1))
    throw new ModelFolderError('USAGE', `sparsity is ${random.sparsity}, expected a number from 0 to below 1`);
  const config = parseOptConfig(configJson);
  const attention = chooseAttention(config, options);
  const weights = new RandomWeights(random, options.dtype ?? 'float32');
  const model = buildOptModel(config, weights, { dtype: options.dtype ?? 'float32', attention });
  const saved = await save(model, options, []);
  await writeWhole(join(options.output, 'config.json'), forTransformersJs(configJson));
  return { ...saved, config, attention, companions: ['config.json'], unusedTensors: [] };
}

function chooseAttention(config: OptConfig, { attention, dtype = 'float32' }: ExportOptions): OptAttention {
  if (attention === 'group-query' && headDim(config) % 8 !== 0) {
    throw new ModelFolderError(
      'USAGE',
      `GroupQueryAttention needs heads of a multiple of 8 elements, this model's have ${headDim(config)}; export with --attention onnx`,
    );
  }
  return attention ?? defaultAttention(config, dtype);
}

async function save(
  model: ModelProto,
  options: ExportOptions,
  inputs: readonly string[],
): Promise<Pick<ExportResult, 'modelPath' | 'modelBytes' | 'dataBytes'>> {
  const { path, modelBytes, dataBytes } = await saveModel(model, {
    path: join(options.output, 'model.onnx'),
    inputs,
    signal: options.signal,
    ...(options.onProgress ? { onProgress: options.onProgress } : {}),
  });
  return { modelPath: path, modelBytes, dataBytes };
}

/**
 * Copies configuration and tokenizer of a model folder; a tokenizer.json is made where there are only vocab.json and
 * merges.txt.
 *
 * @returns the names written.
 */
export async function copyCompanions(folder: string, output: string): Promise<string[]> {
  const written: string[] = [];
  const sameFolder = resolve(folder) === resolve(output);
  for (const file of companionFiles) {
    if (!(await exists(join(folder, file)))) continue;
    if (sameFolder && file !== 'config.json') continue;
    const content = await readFile(join(folder, file));
    await writeWhole(
      join(output, file),
      file === 'config.json' ? forTransformersJs(JSON.parse(content.toString('utf8'))) : content,
    );
    written.push(file);
  }
  const parts = ['vocab.json', 'merges.txt'];
  if (
    !(await exists(join(output, 'tokenizer.json'))) &&
    (await Promise.all(parts.map((part) => exists(join(folder, part))))).every(Boolean)
  ) {
    const json = await buildTokenizerJson(folder);
    await writeWhole(join(output, 'tokenizer.json'), `${JSON.stringify(json)}\n`);
    written.push('tokenizer.json');
  }
  return written;
}

/** transformers.js looks for external data only where config.json tells it to. */
function forTransformersJs(config: Record<string, unknown>): string {
  const known = config['transformers.js_config'];
  const settings = { ...(typeof known === 'object' ? known : {}), use_external_data_format: { 'model.onnx': 1 } };
  return `${JSON.stringify({ ...config, 'transformers.js_config': settings }, undefined, 2)}\n`;
}

async function writeWhole(path: string, content: string | Buffer): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  await mkdir(resolve(path, '..'), { recursive: true });
  try {
    await writeFile(temporary, content);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
