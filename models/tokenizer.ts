import { join } from 'node:path';
import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import { readRegularFile } from './checkpoint/read.js';
import { ModelFolderError } from './errors.js';
import { buildTokenizerJson } from './tokenizer-json.js';

/** Text to token ids and back. */
export interface Tokenizer {
  /** Ids of a text; with the tokens that begin every text of the model (OPT's `</s>`) unless `special` is false. */
  encode(text: string, options?: { readonly special?: boolean }): number[];
  /** Text of ids, special tokens left out. Bytes of an unfinished character come out as U+FFFD. */
  decode(ids: readonly number[]): string;
  /**
   * What an id adds to the text of any whole characters before it, where that does not depend on them; undefined where it
   * does, or where the id ends within a character. Left out by a tokenizer of which this is not known.
   */
  textOf?(id: number): string | undefined;
  /** Bytes of an id in the vocabulary, where a text is its ids' bytes; left out by a tokenizer of other texts. */
  bytesOf?(id: number): Uint8Array | undefined;
  /** Most UTF-8 bytes of a text that one id stands for; left out by a tokenizer of which this is not known. */
  readonly mostBytes?: number | undefined;
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
  let longest: number | undefined;
  try {
    tokenizer = new HfTokenizer(definition, settings);
    tokenizer.encode('a'); // some of what is wrong in a definition comes out when it is used
    longest = joinsBytes(definition) ? mostBytes(definition) : undefined;
  } catch (cause) {
    throw new ModelFolderError('TOKENIZER', `the tokenizer in ${folder} cannot be used: ${(cause as Error).message}`, {
      cause,
    });
  }
  const decode = (ids: readonly number[]): string =>
    // An empty list is an error to the library.
    ids.length === 0
      ? ''
      : tokenizer.decode([...ids], { skip_special_tokens: true, clean_up_tokenization_spaces: false });
  return {
    encode: (text, { special = true } = {}) => tokenizer.encode(text, { add_special_tokens: special }).ids,
    decode,
    ...(joinsBytes(definition) && {
      textOf: wholeTexts(decode),
      bytesOf: (id) => bytesOf(tokenizer.id_to_token(id)),
      mostBytes: longest,
    }),
  };
}

/** Whether a text is its tokens' bytes, one after the other: so it is with byte-level BPE, OPT's. */
function joinsBytes({ decoder }: Record<string, unknown>): boolean {
  return (decoder as { type?: unknown } | null | undefined)?.type === 'ByteLevel';
}

/** Bytes that no character of their own stands for in a byte-level vocabulary: there they are 256 and following. */
const unprintable = Array.from({ length: 256 }, (_, byte) => byte).filter(
  (byte) => byte <= 0x20 || (byte >= 0x7f && byte <= 0xa0) || byte === 0xad,
);

/** The bytes of a token as the vocabulary writes it; undefined where there is none, or its characters are not of bytes. */
function bytesOf(token: string | undefined): Uint8Array | undefined {
  const codes = Array.from(token ?? '', (character) => character.codePointAt(0) as number);
  const bytes = codes.map((code) => (code < 256 ? code : unprintable[code - 256]));
  return token === undefined || bytes.includes(undefined) ? undefined : Uint8Array.from(bytes as number[]);
}

/** Bytes of the longest token; undefined where a text may lose some before it is split into tokens. */
function mostBytes({ normalizer, model, added_tokens: added = [] }: Record<string, unknown>): number | undefined {
  const special = added as { content: string; lstrip?: boolean; rstrip?: boolean }[];
  if (normalizer || special.some(({ lstrip, rstrip }) => lstrip || rstrip)) return undefined;
  // Each character of a token in the vocabulary is a byte.
  const lengths = Object.keys((model as { vocab: object }).vocab).map(({ length }) => length);
  return [...lengths, ...special.map(({ content }) => Buffer.byteLength(content))].reduce((a, b) => Math.max(a, b), 1);
}

/** Texts of single ids, each decoded once; undefined for one that alone is no whole characters. */
function wholeTexts(decode: Tokenizer['decode']): (id: number) => string | undefined {
  const texts = new Map<number, string | undefined>();
  return (id) => {
    const known = texts.get(id);
    if (known !== undefined || texts.has(id)) return known;
    const text = decode([id]);
    const whole = text.includes('\ufffd') ? undefined : text;
    texts.set(id, whole);
    return whole;
  };
}

async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  let text: string;
  try {
    text = await readRegularFile(path);
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
