import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { loadTokenizer, type Tokenizer } from './tokenizer.js';

/** Token ids as text, `17 200 41`: for random models, which have no vocabulary. */
export const numberTokenizer: Tokenizer = {
  encode: (text) => text.split(/\s+/).filter(Boolean).map(Number),
  decode: (ids) => ids.map((id) => `${id} `).join(''),
  textOf: (id) => `${id} `,
};

/** The folder's tokenizer; numbers where it has no file of one. */
export async function tokenizerOrNumbers(folder: string): Promise<Tokenizer> {
  const some = ['tokenizer.json', 'vocab.json', 'merges.txt'].some((file) => existsSync(join(folder, file)));
  return some ? loadTokenizer(folder) : numberTokenizer;
}
