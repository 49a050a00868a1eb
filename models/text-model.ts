import { join } from 'node:path';
import { InferenceSession } from 'onnxruntime-node';
import { Decoder } from './decoder.js';
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
  const decoder = new Decoder(session);
  const generator = new TextGenerator(decoder, texts, config, scheduling);
  return { session, decoder, tokenizer: texts, generator };
}
