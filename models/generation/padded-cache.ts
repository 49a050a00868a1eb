import { type CacheArray, cacheArray, cacheTensor } from '../cache-tensor.js';
import { type Cache, cacheNames, type DecoderShape } from '../decoder.js';
import { breathe } from './event-loop.js';

/** Room for so many tokens is added at a time, so that a growing cache is allocated once in many steps. */
const PAGE_TOKENS = 64;

/** A row of a cache that is to become a row of another: its last `length` tokens. */
export interface CacheRow {
  readonly cache: PaddedCache;
  readonly row: number;
  readonly length: number;
}

/**
 * Keys and values of a batch, [rows, heads, tokens, head_dim] for each layer. A row's own tokens are its last ones;
 * what is before them is padding, zeros or older tokens, and always finite, for attention multiplies it by 0.
 *
 * A step reads one side and writes the other, each in memory that is kept: the model's Attention writes past and new
 * tokens to a new tensor, and to allocate it each time costs more than to copy.
 */
export class PaddedCache {
  rows = 0;
  tokens = 0;
  private side: CacheArray[] = [];
  private other: CacheArray[] = [];
  private readonly names: readonly string[];

  constructor(private readonly shape: DecoderShape) {
    this.names = cacheNames(shape).map(([past]) => past);
  }

  /** Bytes of memory held. */
  get bytes(): number {
    return [...this.side, ...this.other].reduce((sum, array) => sum + array.byteLength, 0);
  }

  /** Empties the cache for a batch of `rows`; its memory is kept. */
  reset(rows: number): void {
    this.rows = rows;
    this.tokens = 0;
  }

  /** The past for a step, and where the step is to write past and `fresh` new tokens. */
  begin(fresh: number): { cache: Cache; present: Cache } {
    this.other = this.withRoom(this.other, this.rows, this.tokens + fresh);
    return {
      cache: this.view(this.side, this.tokens),
      present: this.view(this.other, this.tokens + fresh),
    };
  }

  /** The step that `begin` prepared is done. */
  commit(fresh: number): void {
    [this.side, this.other] = [this.other, this.side];
    this.tokens += fresh;
  }

  /** Writes a row of another cache, no longer than this one, over a row of this one. */
  async replaceRow(row: number, source: CacheRow): Promise<void> {
    for (let i = 0; i < this.names.length; i++) {
      this.copyRow(source, i, this.side[i] as CacheArray, row, this.tokens);
      await breathe();
    }
  }

  /** Makes this cache consist of rows of this and other caches, padded on the left to the longest. */
  async rebuild(sources: readonly CacheRow[]): Promise<void> {
    const tokens = Math.max(0, ...sources.map(({ length }) => length));
    this.other = this.withRoom(this.other, sources.length, tokens);
    for (let i = 0; i < this.names.length; i++) {
      for (const [row, source] of sources.entries()) this.copyRow(source, i, this.other[i] as CacheArray, row, tokens);
      await breathe();
    }
    [this.side, this.other] = [this.other, this.side];
    this.rows = sources.length;
    this.tokens = tokens;
  }

  private copyRow(
    { cache, row, length }: CacheRow,
    tensor: number,
    target: CacheArray,
    to: number,
    tokens: number,
  ): void {
    const { heads, headDim } = this.shape;
    const source = cache.side[tensor] as CacheArray;
    for (let head = 0; head < heads; head++) {
      const end = (row * heads + head + 1) * cache.tokens * headDim;
      const start = (to * heads + head) * tokens * headDim;
      const padding = (tokens - length) * headDim;
      target.fill(0, start, start + padding);
      target.set(source.subarray(end - length * headDim, end), start + padding);
    }
  }

  private withRoom(arrays: CacheArray[], rows: number, tokens: number): CacheArray[] {
    const { heads, headDim } = this.shape;
    const perToken = rows * heads * headDim;
    if (arrays.length > 0 && (arrays[0] as CacheArray).length >= perToken * tokens) return arrays;
    const room = perToken * Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS;
    return this.names.map(() => cacheArray(this.shape, room));
  }

  private view(arrays: CacheArray[], tokens: number): Cache {
    const { heads, headDim } = this.shape;
    const dims = [this.rows, heads, tokens, headDim];
    const length = this.rows * heads * tokens * headDim;
    return Object.fromEntries(
      this.names.map((name, i) => {
        const array = arrays[i] ?? cacheArray(this.shape, 0);
        return [name, cacheTensor(this.shape, array.subarray(0, length), dims)];
      }),
    );
  }
}
