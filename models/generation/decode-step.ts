import { Tensor } from 'onnxruntime-node';
import { prepareRun } from '../../provider/backend.js';
import type { Mirrored } from '../../provider/native-call.js';
import type { PreparedRun } from '../../provider/prepared-run.js';
import { type Cache, LIKELIEST, Logits, type RowDecoder } from '../decoder.js';

/** What a row has in a decoding step. */
export interface DecodeRow {
  /** Tokens in the cache. */
  readonly past: number;
  readonly token: number;
}

/**
 * What comes after each row's token: the likeliest, where they are all that was asked for and the model tells them; else
 * logits. Valid until the next step.
 */
export type NextTokens =
  | { readonly likeliest: BigInt64Array; readonly logits?: undefined }
  | { readonly likeliest?: undefined; readonly logits: Logits };

/**
 * One new token for each of the same rows of a cache, again and again. Its tensors never change their shape or place: the mask is as
 * wide as the cache has room. So a step hands nothing over but what it writes into three arrays, and a GPU replays a recorded graph.
 */
export class DecodeStep {
  private readonly ids: BigInt64Array;
  private readonly positions: BigInt64Array;
  private readonly mask: BigInt64Array;
  /** Positions of each row that the mask keeps: the first so many. */
  private readonly kept: number[];
  private readonly likeliest: BigInt64Array | undefined;
  private readonly feeds: Record<string, Tensor | Mirrored>;
  private readonly fetches: Record<string, Tensor | Mirrored>;
  private readonly prepared: PreparedRun | undefined;

  /**
   * @param cache the rows, as past and present at once; the step's own.
   * @param logits [rows, 1, vocabulary], what they are written into.
   * @param width positions of a row that are looked at, at most its room.
   */
  constructor(
    private readonly decoder: RowDecoder,
    private readonly cache: Cache,
    private readonly logits: Tensor,
    rows: number,
    private readonly width: number,
  ) {
    const { memory } = decoder;
    this.ids = new BigInt64Array(rows);
    this.positions = new BigInt64Array(rows);
    this.mask = new BigInt64Array(rows * width);
    this.kept = Array.from({ length: rows }, () => 0);
    this.feeds = {
      ...decoder.named({
        ids: memory.place(new Tensor('int64', this.ids, [rows, 1])),
        mask: memory.place(new Tensor('int64', this.mask, [rows, width])),
        positions: memory.place(new Tensor('int64', this.positions, [rows, 1])),
      }),
      ...cache,
    };
    this.fetches = { logits: memory.place(logits), ...decoder.presentOf(cache) };
    if (decoder.tellsLikeliest) {
      this.likeliest = new BigInt64Array(rows);
      this.fetches[LIKELIEST] = memory.place(new Tensor('int64', this.likeliest, [rows, 1]));
    }
    this.prepared = prepareRun(decoder.session, this.feeds, this.fetches);
  }

  /**
   * Computes a step.
   * @param rows as many as the step has.
   * @param greedy whether the likeliest tokens are all that is asked for.
   */
  async run(rows: readonly DecodeRow[], greedy: boolean): Promise<NextTokens> {
    for (const [row, { past, token }] of rows.entries()) {
      this.ids[row] = BigInt(token);
      this.positions[row] = BigInt(past);
      this.keep(row, past + 1);
    }
    const likeliest = greedy ? this.likeliest : undefined;
    if (this.prepared) await this.prepared.start([likeliest ? LIKELIEST : 'logits']);
    else await this.decoder.session.run(this.feeds as Record<string, Tensor>, this.fetches as Record<string, Tensor>);
    return likeliest ? { likeliest } : { logits: new Logits(this.logits) };
  }

  /** Lets its memory go, its views of the cache and what a GPU recorded. Nothing is running. */
  async dispose(): Promise<void> {
    const { memory } = this.decoder;
    for (const place of [...Object.values(this.feeds), ...Object.values(this.fetches)])
      if ('host' in place) memory.free(place.device);
    for (const view of Object.values(this.cache)) memory.free(view);
    // A GPU that fails here has failed before, in a run, which said so.
    await this.prepared?.dispose().catch(() => {});
  }

  private keep(row: number, length: number): void {
    const kept = this.kept[row] as number;
    const start = row * this.width;
    if (length > kept) this.mask.fill(1n, start + kept, start + length);
    else this.mask.fill(0n, start + length, start + kept);
    this.kept[row] = length;
  }
}
