import { readFile } from 'node:fs/promises';
import { namesOf, requireNames, requireText, unexpected } from '../arguments.js';
import { ModelFolderError } from '../errors.js';
import { shippedCalibrationText } from '../shipped.js';
import type { Tokenizer } from '../tokenizer.js';

/** Which text the layers are run on. */
export interface CalibrationSettings {
  /** A text file, UTF-8. Default: the one that ships with the package (models/data/README.md). */
  readonly file?: string | undefined;
  /** Default 128. */
  readonly sequences?: number | undefined;
  /** Tokens of a sequence. Default: the model's context length, 2048 at most. */
  readonly length?: number | undefined;
  /** The same seed takes the same pieces of the text. Default 0. */
  readonly seed?: number | undefined;
}

const NAMES = namesOf<CalibrationSettings>({ file: true, sequences: true, length: true, seed: true });

/** Their ids take 1 GiB, their activations thousands of times that. */
const MOST_TOKENS = 2 ** 28;

/** Sequences cut out of a text. */
export interface Calibration {
  readonly sequences: number;
  readonly length: number;
  /** [sequences, length] */
  readonly ids: Int32Array;
}

/** Reads, tokenizes and cuts. @throws ModelFolderError `USAGE` for a text that is too short or settings out of range. */
export async function loadCalibration(
  tokenizer: Tokenizer,
  maxPositions: number,
  settings: CalibrationSettings,
): Promise<Calibration> {
  if (typeof settings === 'string') throw unexpected('calibration', settings, 'an object: { file } names a text file');
  requireNames('calibration', settings, NAMES);
  const { sequences = 128, length = Math.min(maxPositions, 2048), seed = 0 } = settings;
  const path = settings.file ?? shippedCalibrationText();
  requireText('file of calibration', path, 'the path of a text file');
  if (!Number.isSafeInteger(seed)) throw unexpected('seed of calibration', seed, 'a whole number');
  if (!Number.isSafeInteger(sequences) || sequences < 1)
    throw new ModelFolderError('USAGE', `sequences is ${sequences}, expected a whole number ≥ 1`);
  if (!Number.isSafeInteger(length) || length < 1 || length > maxPositions)
    throw new ModelFolderError('USAGE', `length is ${length}, expected 1 to the model's ${maxPositions} positions`);
  if (sequences * length > MOST_TOKENS)
    throw new ModelFolderError(
      'USAGE',
      `${sequences} sequences of ${length} tokens are asked for, expected at most ${MOST_TOKENS} tokens together`,
    );
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw new ModelFolderError('USAGE', `cannot read the calibration text: ${(cause as Error).message}`, { cause });
  }
  const ids = tokenizer.encode(text, { special: false });
  if (ids.length < length)
    throw new ModelFolderError(
      'USAGE',
      `${path} has ${ids.length} tokens, one sequence takes ${length}: use a longer text or a smaller --length`,
    );
  return { sequences, length, ids: cut(ids, sequences, length, seed) };
}

/** Pieces that do not overlap, in random order, while there are enough; else pieces from anywhere. */
function cut(ids: readonly number[], sequences: number, length: number, seed: number): Int32Array {
  const random = randomNumbers(seed);
  const pieces = Math.floor(ids.length / length);
  const starts =
    pieces >= sequences
      ? shuffled(pieces, random).map((piece) => piece * length)
      : Array.from({ length: sequences }, () => Math.floor(random() * (ids.length - length + 1)));
  const out = new Int32Array(sequences * length);
  for (let i = 0; i < sequences; i++) {
    const start = starts[i] as number;
    out.set(ids.slice(start, start + length), i * length);
  }
  return out;
}

function shuffled(count: number, random: () => number): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}

/** Reproducible uniform numbers in [0, 1): a 32-bit linear congruential generator (Numerical Recipes), its upper bits. */
function randomNumbers(seed: number): () => number {
  let state = (Math.imul(seed, 0x9e3779b1) ^ 0x2545f491) >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 4) / 2 ** 28;
  };
}
