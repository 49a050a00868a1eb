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
 * One new token for each of the same rows of a cache, again and again. Its tensors never change their shape or place: the mask has its
 * full width from the first step on. So a step hands nothing over but what it writes into three arrays, and a GPU replays a recorded graph.
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
  /** What is to be freed: views of the cache, and mirrors. */
  private readonly owned: Tensor[];

  /**
   * @param cache the rows, as past and present at once; the step's own from here on, also where this throws.
   * @param logits [rows, 1, vocabulary], what they are written into.
   * @param width positions of a row that are looked at, at most its room.
   * @throws where there is not enough memory for the mirrors, or the session takes no such run; nothing stays then.
   */
  constructor(
    private readonly decoder: RowDecoder,
    cache: Cache,
    private readonly logits: Tensor,
    rows: number,
    private readonly width: number,
  ) {
    this.owned = Object.values(cache);
    this.ids = new BigInt64Array(rows);
    this.positions = new BigInt64Array(rows);
    this.mask = new BigInt64Array(rows * width);
    this.kept = Array.from({ length: rows }, () => 0);
    try {
      this.feeds = {
        ...decoder.named({
          ids: this.place(new Tensor('int64', this.ids, [rows, 1])),
          mask: this.place(new Tensor('int64', this.mask, [rows, width])),
          positions: this.place(new Tensor('int64', this.positions, [rows, 1])),
        }),
        ...cache,
      };
      this.fetches = { logits: this.place(logits), ...decoder.presentOf(cache) };
      if (decoder.tellsLikeliest) {
        this.likeliest = new BigInt64Array(rows);
        this.fetches[LIKELIEST] = this.place(new Tensor('int64', this.likeliest, [rows, 1]));
      }
      this.prepared = prepareRun(decoder.session, this.feeds, this.fetches);
    } catch (error) {
      this.free();
      throw error;
    }
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
    this.free();
    // A GPU that fails here has failed before, in a run, which said so.
    await this.prepared?.dispose().catch(() => {});
  }

  /** What the run is given for a tensor: itself or a mirror, which is freed with the step. */
  private place(tensor: Tensor): Tensor | Mirrored {
    const place = this.decoder.memory.place(tensor);
    if ('host' in place) this.owned.push(place.device);
    return place;
  }

  private free(): void {
    for (const tensor of this.owned) this.decoder.memory.free(tensor);
  }

  private keep(row: number, length: number): void {
    const kept = this.kept[row] as number;
    const start = row * this.width;
    if (length > kept) this.mask.fill(1n, start + kept, start + length);
    else this.mask.fill(0n, start + length, start + kept);
    this.kept[row] = length;
  }
}
