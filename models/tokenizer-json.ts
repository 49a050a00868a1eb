import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ModelFolderError } from './errors.js';

/** OPT's special tokens, as its slow tokenizer names them; a vocabulary may lack some. */
const specialTokens = ['<s>', '<pad>', '</s>', '<unk>'];

/**
 * Makes the tokenizer.json that released OPT folders lack out of their vocab.json and merges.txt: GPT-2's byte-level
 * BPE, with OPT's `</s>` before every text.
 *
 * @throws ModelFolderError `TOKENIZER` if a file is missing or malformed.
 */
export async function buildTokenizerJson(folder: string): Promise<Record<string, unknown>> {
  const vocab = await readVocab(join(folder, 'vocab.json'));
  const merges = parseMerges(await readText(join(folder, 'merges.txt')));
  const leading = vocab['</s>'];
  if (leading === undefined)
    throw new ModelFolderError(
      'TOKENIZER',
      `${join(folder, 'vocab.json')} lacks </s>, which begins every text of an OPT model`,
    );
  const byteLevel = { type: 'ByteLevel', trim_offsets: true, use_regex: true };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specialTokens
      .filter((token) => vocab[token] !== undefined)
      .map((content) => ({
        id: vocab[content],
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      }))
      .sort((a, b) => (a.id as number) - (b.id as number)),
    normalizer: null,
    pre_tokenizer: { ...byteLevel, add_prefix_space: false },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '</s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '</s>': { id: '</s>', ids: [leading], tokens: ['</s>'] } },
    },
    decoder: { ...byteLevel, add_prefix_space: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges,
    },
  };
}

async function readVocab(path: string): Promise<Record<string, number>> {
  let json: unknown;
  try {
    json = JSON.parse(await readText(path));
  } catch (cause) {
    if (cause instanceof ModelFolderError) throw cause;
    throw new ModelFolderError('TOKENIZER', `${path} is not JSON: ${(cause as Error).message}`, { cause });
  }
  const valid =
    typeof json === 'object' &&
    json !== null &&
    !Array.isArray(json) &&
    Object.values(json).every((id) => Number.isInteger(id) && id >= 0);
  if (!valid) throw new ModelFolderError('TOKENIZER', `${path} is not a map from tokens to ids`);
  return json as Record<string, number>;
}

/** Lines of two symbols; the first line may be a `#version` comment. */
function parseMerges(text: string): string[] {
  const lines = text.split('\n').map((line) => line.replace(/\r$/, ''));
  if (lines[0]?.startsWith('#version')) lines.shift();
  const merges = lines.filter((line) => line !== '');
  const bad = merges.find((line) => line.split(' ').length !== 2);
  if (bad !== undefined)
    throw new ModelFolderError(
      'TOKENIZER',
      `merges.txt holds the line ${JSON.stringify(bad)}, expected two symbols and a space between`,
    );
  return merges;
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new ModelFolderError(
      'TOKENIZER',
      `cannot read ${path}: ${(cause as Error).message}; expected tokenizer.json in the folder, or vocab.json and merges.txt: copy them there from the Hugging Face folder that the model was made of`,
      { cause },
    );
  }
}
