import { type Cache, type CacheArray, cacheArray, cacheNames, cacheTensor, type DecoderShape } from '../decoder.js';
import { breathe } from './event-loop.js';

/** Room is reserved in multiples of so many tokens. */
const PAGE_TOKENS = 64;

/**
 * Keys and values of sequences, [rows, heads, room, head_dim] for each layer, which the model's steps read and extend
 * where they lie. A row belongs to one sequence; its tokens begin at position 0. What lies behind them is never read.
 */
export interface RowCache {
  /** Bytes reserved. */
  readonly bytes: number;
  /**
   * Makes place for `rows` rows of `tokens` tokens each.
   * @param lengths how many tokens each row holds that must be kept.
   */
  reserve(rows: number, tokens: number, lengths: readonly number[]): Promise<void>;
  /** `count` rows from `first` on as tensors, by the names of the model's inputs: past and present of a step at once. */
  view(first: number, count: number): Cache;
  /** Copies a row's `length` tokens to another row. @returns false where the memory cannot do that. */
  move(from: number, to: number, length: number): Promise<boolean>;
  /** Gives the memory back. */
  clear(): void;
}

/**
 * Rows in the process's memory. What is reserved and not yet written takes no physical memory: the system maps a page
 * when it is touched first. So each sequence gets its whole room at once, and nothing is copied as it grows.
 */
export class HostRowCache implements RowCache {
  private arrays: CacheArray[] = [];
  private rows = 0;
  private room = 0;
  private readonly names: readonly string[];
  private lastView: { readonly first: number; readonly count: number; readonly cache: Cache } | undefined;

  /** @param maxRows most rows that `reserve` is asked for. */
  constructor(
    private readonly shape: DecoderShape,
    private readonly maxRows: number,
  ) {
    this.names = cacheNames(shape).map(([past]) => past);
  }

  get bytes(): number {
    return this.arrays.reduce((sum, array) => sum + array.byteLength, 0);
  }

  async reserve(rows: number, tokens: number, lengths: readonly number[]): Promise<void> {
    if (rows <= this.rows && tokens <= this.room) return;
    const room = Math.max(this.room, Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS);
    const total = rows <= this.rows ? this.rows : Math.min(this.maxRows, Math.max(rows, 2 * this.rows));
    const { heads, headDim } = this.shape;
    const grown: CacheArray[] = [];
    for (let i = 0; i < this.names.length; i++) {
      const target = cacheArray(this.shape, total * heads * room * headDim);
      for (const [row, length] of lengths.entries())
        for (let head = row * heads; length > 0 && head < (row + 1) * heads; head++)
          target.set(this.tokens(i, head, length), head * room * headDim);
      grown.push(target);
      await breathe();
    }
    this.arrays = grown;
    this.rows = total;
    this.room = room;
    this.lastView = undefined;
  }

  view(first: number, count: number): Cache {
    const { lastView, room } = this;
    if (lastView?.first === first && lastView.count === count) return lastView.cache;
    const { heads, headDim } = this.shape;
    const row = heads * room * headDim;
    const entries = this.names.map((name, i) => {
      const part = (this.arrays[i] as CacheArray).subarray(first * row, (first + count) * row);
      return [name, cacheTensor(this.shape, part, [count, heads, room, headDim])] as const;
    });
    const cache = Object.fromEntries(entries);
    this.lastView = { first, count, cache };
    return cache;
  }

  async move(from: number, to: number, length: number): Promise<boolean> {
    const { heads, headDim } = this.shape;
    for (let i = 0; i < this.names.length; i++) {
      for (let head = 0; head < heads; head++) {
        const target = (to * heads + head) * this.room * headDim;
        (this.arrays[i] as CacheArray).set(this.tokens(i, from * heads + head, length), target);
      }
      await breathe();
    }
    return true;
  }

  clear(): void {
    this.arrays = [];
    this.rows = 0;
    this.room = 0;
    this.lastView = undefined;
  }

  /** The first `length` tokens of one head of one row; `head` counts over all rows. */
  private tokens(tensor: number, head: number, length: number): CacheArray {
    const { headDim } = this.shape;
    const start = head * this.room * headDim;
    return (this.arrays[tensor] as CacheArray).subarray(start, start + length * headDim);
  }
}
