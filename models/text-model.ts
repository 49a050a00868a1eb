import { InferenceSession } from 'onnxruntime-node';
import { decodeModel } from '../graph-passes/onnx/proto.js';
import { scanModel } from '../graph-passes/onnx/scan.js';
import { FLOAT16 } from '../graph-passes/onnx/tensor.js';
import { requireRuntime } from '../provider/backend.js';
import { offersGpu } from '../provider/device-tensor.js';
import type { FlashLLMOptions } from '../provider/ep-options.js';
import '../provider/onnxruntime-types.js';
import { Decoder } from './decoder.js';
import { type CacheMemory, hostMemory } from './generation/cache-memory.js';
import { deviceMemory } from './generation/device-memory.js';
import type { SchedulerOptions } from './generation/scheduler.js';
import { readGeneratorConfig, requireModel } from './model-folder.js';
import { IN_PLACE_LENGTH } from './opt/graph-context.js';
import { type GeneratorConfig, TextGenerator } from './text-generator.js';
import { loadTokenizer, type Tokenizer } from './tokenizer.js';

/** A model folder, opened: what text generation and perplexity need. `await using` releases it. */
export interface TextModel extends AsyncDisposable {
  /** Its `release()` is the model's. */
  readonly session: InferenceSession;
  readonly decoder: Decoder;
  readonly tokenizer: Tokenizer;
  readonly generator: TextGenerator;
  /** What config.json says that generation needs. */
  readonly config: GeneratorConfig;
  /** Path of the .onnx file. */
  readonly path: string;
  /** Ends the session, and the generator too: what is being generated fails, and all memory is given back. Idempotent. */
  release(): Promise<void>;
}

/** Where a session runs if its options do not say. */
const DEFAULT_PROVIDERS = ['flashllm', 'cpu'];

/**
 * Opens a folder of a decoder with past (a model, config.json, tokenizer), such as `exportOpt` and `rewriteFolder` write, in an ordinary
 * session. The architecture is any whose inputs and outputs have Optimum's names.
 *
 * @param folder the folder, with `model.onnx` or one model of any name, in it or in its `onnx/`; or an .onnx file; or a file: URL of either.
 * @param options of the session; `executionProviders` are `['flashllm', 'cpu']` if not said, `['cpu']` leaves this package's provider out.
 * Where that provider may take a GPU, decoding steps are recorded there as CUDA graphs, unless its option `cudaGraph` says otherwise; runs of
 * your own stay ordinary ones.
 * @param scheduling of the generator's batch.
 * @param tokenizer default: the folder's.
 * @throws ModelFolderError for a folder that is not there or incomplete, or has several models; ModelError for files that are no ONNX model, or part of one;
 * NativeLoadError where this package's provider is asked for and its binaries do not load; ONNX Runtime's error for a model that it refuses.
 */
export async function openTextModel(
  folder: string | URL,
  options: InferenceSession.SessionOptions = {},
  scheduling: SchedulerOptions = {},
  tokenizer?: Tokenizer,
): Promise<TextModel> {
  const { path, root } = await requireModel(folder);
  const config = await readGeneratorConfig(root);
  const texts = tokenizer ?? (await loadTokenizer(root));
  const session = await createSession(path, options);
  const decoder = new Decoder(session, cacheMemory(session, options), config.maxPositions);
  const generator = new TextGenerator(decoder, texts, config, scheduling);
  releaseWith(session, () => generator.scheduler.close());
  const release = () => session.release();
  return { session, decoder, tokenizer: texts, generator, config, path, release, [Symbol.asyncDispose]: release };
}

/**
 * Creates a session of a model as `openTextModel` does.
 * @throws NativeLoadError where this package's provider is asked for and does not load.
 */
export async function createSession(path: string, options: InferenceSession.SessionOptions): Promise<InferenceSession> {
  if (oursOf(options)) requireRuntime();
  return InferenceSession.create(path, withGraphs(path, options));
}

/**
 * Has a session's release begin with what holds memory over it: steps that are recorded would keep the session, and their cache would stay
 * until the garbage collector finds it. Further calls return the same promise: another provider's session is released only once.
 */
function releaseWith(session: InferenceSession, first: () => Promise<void>): void {
  const release = session.release.bind(session);
  let released: Promise<void> | undefined;
  session.release = () => {
    released ??= first().finally(release);
    return released;
  };
}

/**
 * The options of a session of a model, providers included, with CUDA graphs where it can be recorded and they do not say otherwise. To a
 * session on the CPU graphs mean nothing.
 */
export function withGraphs(path: string, options: InferenceSession.SessionOptions): InferenceSession.SessionOptions {
  const ours = oursOf(options);
  if (!ours || ours.device === 'cpu' || !canBeRecorded(path))
    return { ...options, executionProviders: providersOf(options) };
  const recording = { cudaGraph: true, ...ours };
  return {
    ...options,
    executionProviders: providersOf(options).map((provider) => (isOurs(provider) ? recording : provider)),
  };
}

/** Whether options ask for CUDA graphs. */
export function recordsGraphs(options: InferenceSession.SessionOptions): boolean {
  return oursOf(options)?.cudaGraph === true;
}

/** Whether it is a float16 graph with a cache in place: then every node has a GPU kernel and a step's tensors can stay. */
function canBeRecorded(path: string): boolean {
  try {
    const { graph } = decodeModel(scanModel(path).bytes);
    const type = graph?.output?.find(({ name }) => name === 'present.0.key')?.type?.tensorType;
    return type?.elemType === FLOAT16 && type.shape?.dim?.[2]?.dimParam === IN_PLACE_LENGTH;
  } catch {
    // What is wrong with the file, requireModel or the session says.
    return false;
  }
}

type Provider = NonNullable<InferenceSession.SessionOptions['executionProviders']>[number];

function isOurs(provider: Provider): boolean {
  return (typeof provider === 'string' ? provider : provider.name) === 'flashllm';
}

function providersOf({ executionProviders = DEFAULT_PROVIDERS }: InferenceSession.SessionOptions): readonly Provider[] {
  return executionProviders;
}

/** This package's provider among those of a session, with its options. */
function oursOf(options: InferenceSession.SessionOptions): FlashLLMOptions | undefined {
  const ours = providersOf(options).find(isOurs);
  return typeof ours === 'string' ? { name: 'flashllm' } : (ours as FlashLLMOptions | undefined);
}

/** Where keys and values are to lie: on the GPU that attention is computed on, else in the process's memory. */
function cacheMemory(session: InferenceSession, options: InferenceSession.SessionOptions): CacheMemory {
  const device = computesOnDevice(session, options);
  return device === undefined ? hostMemory : deviceMemory(device);
}

/** The GPU on which a session of the flashllm provider computes attention. */
export function computesOnDevice(
  session: InferenceSession,
  options: InferenceSession.SessionOptions,
): number | undefined {
  const ours = oursOf(options);
  // The provider has GPU kernels of attention for float16 only.
  const half = session.inputMetadata.some((input) => input.isTensor && input.type === 'float16');
  if (!ours || !half || ours.device === 'cpu') return undefined;
  const deviceId = ours.deviceId ?? 0;
  return ours.device === 'cuda' || offersGpu(deviceId) ? deviceId : undefined;
}
