import type { RowDecoder } from '../decoder.js';
import { DecodeStep } from './decode-step.js';
import type { LogitsMemory } from './logits-memory.js';
import type { RowCache } from './row-cache.js';

/** Rows of a cache that a step takes. */
export interface RowRange {
  readonly first: number;
  readonly count: number;
}

/** A mask is at least as wide, where the rows have room for it: few tokens more cost nothing, another width does. */
const LEAST_WIDTH = 512;
/** On a GPU up to so many rows are powers of two, more are multiples of it. */
const ROWS_OF_A_KIND = 8;

/**
 * The steps that a batch has been through, to be used again. A step of other rows or width is another one: to make it takes as long as
 * handing over a run of the session, and on a GPU as a few runs, since it is recorded there. So a GPU gets ranges of few sizes, and its
 * steps are kept; without one only the last is.
 */
export class DecodeSteps {
  private readonly made = new Map<string, DecodeStep>();

  constructor(
    private readonly decoder: RowDecoder,
    private readonly cache: RowCache,
    private readonly logits: LogitsMemory,
    private readonly maxRows: number,
  ) {}

  /** The range that a step over these rows takes: on a GPU a larger one, which others share. */
  range({ first, count }: RowRange): RowRange {
    return this.decoder.memory.records ? { first: 0, count: this.rounded(first + count) } : { first, count };
  }

  /** As many rows, or more, that a step can have. */
  rounded(rows: number): number {
    if (!this.decoder.memory.records) return rows;
    const larger =
      rows < ROWS_OF_A_KIND ? 2 ** Math.ceil(Math.log2(rows)) : Math.ceil(rows / ROWS_OF_A_KIND) * ROWS_OF_A_KIND;
    return Math.min(larger, this.maxRows);
  }

  /** @param tokens of the longest row after the step. */
  async step({ first, count }: RowRange, tokens: number): Promise<DecodeStep> {
    const width = Math.min(this.cache.room, 2 ** Math.ceil(Math.log2(Math.max(tokens, LEAST_WIDTH))));
    const key = `${first} ${count} ${width}`;
    const known = this.made.get(key);
    if (known) return known;
    if (!this.decoder.memory.records) await this.clear();
    const logits = this.logits.tensor([count, 1, this.decoder.vocabulary]);
    const step = new DecodeStep(this.decoder, this.cache.views(first, count), logits, count, width);
    this.made.set(key, step);
    return step;
  }

  /** Lets the steps go, before the cache moves or is given back. Nothing is running. */
  async clear(): Promise<void> {
    const steps = [...this.made.values()];
    this.made.clear();
    for (const step of steps) await step.dispose();
  }
}
