import { join } from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { offersGpu } from '../provider/device-tensor.js';
import type { FlashLLMOptions } from '../provider/ep-options.js';
import { Decoder } from './decoder.js';
import { type CacheMemory, hostMemory } from './generation/cache-memory.js';
import { deviceMemory } from './generation/device-memory.js';
import type { SchedulerOptions } from './generation/scheduler.js';
import { readOptConfig } from './opt/config.js';
import { TextGenerator } from './text-generator.js';
import { loadTokenizer, type Tokenizer } from './tokenizer.js';

/** A model folder, opened: what text generation and perplexity need. */
export interface TextModel {
  readonly session: InferenceSession;
  readonly decoder: Decoder;
  readonly tokenizer: Tokenizer;
  readonly generator: TextGenerator;
}

/**
 * Opens an exported or rewritten OPT folder (model.onnx, config.json, tokenizer) in an ordinary session.
 *
 * @param options of the session, such as `{ executionProviders: ['flashllm', 'cpu'] }`; that name needs this package
 * imported.
 * @param scheduling of the generator's batch.
 * @param tokenizer default: the folder's.
 * @throws ModelFolderError for a folder that is incomplete; ONNX Runtime's error for a model that it refuses.
 */
export async function openTextModel(
  folder: string,
  options: InferenceSession.SessionOptions = {},
  scheduling: SchedulerOptions = {},
  tokenizer?: Tokenizer,
): Promise<TextModel> {
  const config = await readOptConfig(folder);
  const texts = tokenizer ?? (await loadTokenizer(folder));
  const session = await InferenceSession.create(join(folder, 'model.onnx'), options);
  const decoder = new Decoder(session, cacheMemory(session, options));
  const generator = new TextGenerator(decoder, texts, config, scheduling);
  return { session, decoder, tokenizer: texts, generator };
}

/** Where keys and values are to lie: on the GPU that attention is computed on, else in the process's memory. */
function cacheMemory(session: InferenceSession, options: InferenceSession.SessionOptions): CacheMemory {
  const device = computesOnDevice(session, options);
  return device === undefined ? hostMemory : deviceMemory(device);
}

/** The GPU on which a session of the flashllm provider computes attention. */
export function computesOnDevice(
  session: InferenceSession,
  { executionProviders = [] }: InferenceSession.SessionOptions,
): number | undefined {
  const ours = executionProviders
    .map((provider) => (typeof provider === 'string' ? { name: provider } : provider))
    .find(({ name }) => name === 'flashllm') as FlashLLMOptions | undefined;
  // The provider has GPU kernels of attention for float16 only.
  const half = session.inputMetadata.some((input) => input.isTensor && input.type === 'float16');
  if (!ours || !half || ours.device === 'cpu') return undefined;
  const deviceId = ours.deviceId ?? 0;
  return ours.device === 'cuda' || offersGpu(deviceId) ? deviceId : undefined;
}
