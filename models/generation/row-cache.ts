import type { Tensor } from 'onnxruntime-node';
import { type Cache, cacheNames, type DecoderShape } from '../decoder.js';
import type { CacheMemory } from './cache-memory.js';
import { breathe } from './event-loop.js';

/** Room is reserved in multiples of so many tokens. */
const PAGE_TOKENS = 64;

/**
 * Keys and values of sequences, [rows, heads, room, head_dim] for each layer, which the model's steps read and extend
 * where they lie. A row belongs to one sequence; its tokens begin at position 0. What lies behind them is never read.
 * A sequence gets the room for all that it may become at once, so nothing is copied while it grows.
 */
export class RowCache {
  private tensors: Tensor[] = [];
  private rows = 0;
  /** Tokens that a row has room for. */
  room = 0;
  private readonly names: readonly string[];
  private lent: { readonly first: number; readonly count: number; readonly cache: Cache } | undefined;

  /** @param maxRows most rows that `reserve` is asked for. */
  constructor(
    private readonly shape: DecoderShape,
    private readonly maxRows: number,
    private readonly memory: CacheMemory,
  ) {
    this.names = cacheNames(shape).map(([past]) => past);
  }

  /** Bytes reserved. */
  get bytes(): number {
    const { heads, headDim, type } = this.shape;
    return this.tensors.length * this.rows * heads * this.room * headDim * (type === 'float32' ? 4 : 2);
  }

  /**
   * Makes place for `rows` rows of `tokens` tokens each.
   * @param lengths how many tokens each row holds that must be kept.
   * @returns whether the rows lie elsewhere now: what `view` and `views` gave before shows them no longer.
   * @throws where there is not enough memory; the cache stays as it was.
   */
  async reserve(rows: number, tokens: number, lengths: readonly number[]): Promise<boolean> {
    if (rows <= this.rows && tokens <= this.room) return false;
    const room = Math.max(this.room, Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS);
    const total = rows <= this.rows ? this.rows : Math.min(this.maxRows, Math.max(rows, 2 * this.rows));
    const { heads, headDim, type } = this.shape;
    const grown: Tensor[] = [];
    try {
      for (let i = 0; i < this.names.length; i++) {
        const target = this.memory.allocate(type, [total, heads, room, headDim]);
        grown.push(target);
        for (const [row, length] of lengths.entries())
          if (length > 0) this.memory.copyRow(this.tensors[i] as Tensor, row, target, row, length);
        await breathe();
      }
    } catch (error) {
      this.freeAll(grown);
      throw error;
    }
    this.clear();
    this.tensors = grown;
    this.rows = total;
    this.room = room;
    return true;
  }

  /**
   * `count` rows from `first` on as tensors, by the names of the model's inputs: past and present of a step at once.
   * They are the cache's, until it is asked for others.
   */
  view(first: number, count: number): Cache {
    if (this.lent?.first !== first || this.lent.count !== count) {
      this.dropView();
      this.lent = { first, count, cache: this.views(first, count) };
    }
    return this.lent.cache;
  }

  /** As `view`; the tensors are the caller's, who must free them. */
  views(first: number, count: number): Cache {
    const views: Record<string, Tensor> = {};
    try {
      for (const [i, name] of this.names.entries())
        views[name] = this.memory.rows(this.tensors[i] as Tensor, first, count);
      return views;
    } catch (error) {
      this.freeAll(Object.values(views));
      throw error;
    }
  }

  /** Copies a row's first `length` tokens to another row. */
  async move(from: number, to: number, length: number): Promise<void> {
    for (const tensor of this.tensors) {
      this.memory.copyRow(tensor, from, tensor, to, length);
      await breathe();
    }
  }

  /** Gives the memory back. */
  clear(): void {
    this.dropView();
    this.freeAll(this.tensors);
    this.tensors = [];
    this.rows = 0;
    this.room = 0;
  }

  private dropView(): void {
    this.freeAll(Object.values(this.lent?.cache ?? {}));
    this.lent = undefined;
  }

  private freeAll(tensors: readonly Tensor[]): void {
    for (const tensor of tensors) this.memory.free(tensor);
  }
}
