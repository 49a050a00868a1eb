import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import { ModelFolderError } from './errors.js';
import { buildTokenizerJson } from './tokenizer-json.js';

/** Text to token ids and back. */
export interface Tokenizer {
  /** Ids of a text; with the tokens that begin every text of the model (OPT's `</s>`) unless `special` is false. */
  encode(text: string, options?: { readonly special?: boolean }): number[];
  /** Text of ids, special tokens left out. Bytes of an unfinished character come out as U+FFFD. */
  decode(ids: readonly number[]): string;
}

/**
 * Loads the tokenizer of a model folder: tokenizer.json, or vocab.json and merges.txt where there is none.
 *
 * @throws ModelFolderError `TOKENIZER` if neither is there or one cannot be used.
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const definition = (await readJson(join(folder, 'tokenizer.json'))) ?? (await buildTokenizerJson(folder));
  const settings = (await readJson(join(folder, 'tokenizer_config.json'))) ?? {};
  let tokenizer: HfTokenizer;
  try {
    tokenizer = new HfTokenizer(definition, settings);
  } catch (cause) {
    throw new ModelFolderError('TOKENIZER', `the tokenizer in ${folder} cannot be used: ${(cause as Error).message}`, {
      cause,
    });
  }
  return {
    encode: (text, { special = true } = {}) => tokenizer.encode(text, { add_special_tokens: special }).ids,
    // An empty list is an error to the library.
    decode: (ids) =>
      ids.length === 0
        ? ''
        : tokenizer.decode([...ids], { skip_special_tokens: true, clean_up_tokenization_spaces: false }),
  };
}

async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new ModelFolderError('TOKENIZER', `cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
  try {
    const json: unknown = JSON.parse(text);
    if (typeof json === 'object' && json !== null) return json as Record<string, unknown>;
  } catch (cause) {
    throw new ModelFolderError('TOKENIZER', `${path} is not JSON: ${(cause as Error).message}`, { cause });
  }
  throw new ModelFolderError('TOKENIZER', `${path} is not a JSON object`);
}
