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

  /**
   * @param maxRows most rows that `reserve` is asked for.
   * @param spareBytes most bytes that it takes where less would do for what it is asked for.
   */
  constructor(
    private readonly shape: DecoderShape,
    private readonly maxRows: number,
    private readonly memory: CacheMemory,
    private readonly spareBytes = Number.POSITIVE_INFINITY,
  ) {
    this.names = cacheNames(shape).map(([past]) => past);
  }

  /** Bytes reserved. */
  get bytes(): number {
    return this.tensors.length === 0 ? 0 : this.bytesOf(this.rows, this.room);
  }

  /** Whether there is place for `rows` rows of `tokens` tokens each. */
  fits(rows: number, tokens: number): boolean {
    return rows <= this.rows && tokens <= this.room;
  }

  /**
   * Makes place for `rows` rows of `tokens` tokens each. If the cache grows, its rows lie elsewhere: what `view` and `views` gave before
   * shows them no longer.
   * @param lengths how many tokens each row holds that must be kept. Where there are none, the memory goes before more is taken, so that
   * both need not fit at once, if no view of it is left.
   * @throws where there is not enough memory; rows that hold tokens stay as they were.
   */
  async reserve(rows: number, tokens: number, lengths: readonly number[]): Promise<void> {
    if (this.fits(rows, tokens)) return;
    const room = Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS;
    const grownRows = rows <= this.rows ? this.rows : Math.min(this.maxRows, Math.max(rows, 2 * this.rows));
    const grownRoom = Math.max(this.room, room);
    if (lengths.some((length) => length > 0)) return this.replace(grownRows, grownRoom, lengths);
    this.clear();
    // As large as before in both ways, so that requests of two kinds which take turns both find place.
    if (this.bytesOf(grownRows, grownRoom) <= this.spareBytes) {
      try {
        return await this.replace(grownRows, grownRoom, []);
      } catch {
        // What was asked for may fit all the same.
      }
    }
    await this.replace(rows, room, []);
  }

  /** Moves to new memory. @throws where there is not enough; the cache stays as it was. */
  private async replace(rows: number, room: number, lengths: readonly number[]): Promise<void> {
    const { heads, headDim, type } = this.shape;
    const grown: Tensor[] = [];
    try {
      for (let i = 0; i < this.names.length; i++) {
        const target = this.memory.allocate(type, [rows, heads, room, headDim]);
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
    this.rows = rows;
    this.room = room;
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

  private bytesOf(rows: number, room: number): number {
    const { heads, headDim, type } = this.shape;
    return this.names.length * rows * heads * room * headDim * (type === 'float32' ? 4 : 2);
  }

  private freeAll(tensors: readonly Tensor[]): void {
    for (const tensor of tensors) this.memory.free(tensor);
  }
}
