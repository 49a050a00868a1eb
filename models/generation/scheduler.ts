import { Tensor } from 'onnxruntime-node';
import type { Decoder } from '../decoder.js';
import { ModelFolderError } from '../errors.js';
import { breathe } from './event-loop.js';
import { type CacheRow, KvCache } from './kv-cache.js';

/** What the scheduler runs: tokens in, logits out, tokens in. */
export interface ScheduledSequence {
  /** At least one token. */
  readonly prompt: readonly number[];
  /** Takes the logits [vocabulary] of the next token, valid during the call. @returns the token, or undefined at the end. */
  next(logits: Float32Array): number | undefined;
  /** The sequence has ended with an error; `next` is not called again. */
  fail(error: unknown): void;
}

export interface SchedulerOptions {
  /** Most sequences that are run at once; default 32. */
  readonly maxBatch?: number | undefined;
  /** Most tokens of prompts in one step: longer prompts take several. Default 256. */
  readonly prefillTokens?: number | undefined;
  /** Most sequences that wait for a place; default no limit. */
  readonly maxWaiting?: number | undefined;
}

/** Too many sequences wait already: try again later. */
export class QueueFullError extends ModelFolderError {
  constructor(waiting: number) {
    super('USAGE', `${waiting} prompts wait already, which is the limit; try again when some are done`);
  }
}

/** A sequence in the running batch. */
interface Slot {
  readonly sequence: ScheduledSequence;
  /** Tokens in the cache. */
  length: number;
  /** Chosen, not yet in the cache. */
  token: number;
}

/** Prompts being read: one in chunks, or several short ones in a single step, padded on the left. */
interface Prefill {
  readonly members: (ScheduledSequence | undefined)[];
  readonly longest: number;
  readonly cache: KvCache;
}

/**
 * Continuous batching: sequences join a running batch when their prompt is read and leave it when they end, whatever
 * the others do. Between two steps of the batch at most one step of prefill runs, so that a long prompt holds nobody
 * up for long. Each sequence gets the logits that it would get alone.
 */
export class Scheduler {
  private readonly waiting: ScheduledSequence[] = [];
  private slots: (Slot | undefined)[] = [];
  private cache: KvCache;
  private prefilling: Prefill | undefined;
  private running: Promise<void> | undefined;
  private readonly maxBatch: number;
  private readonly prefillTokens: number;
  private readonly maxWaiting: number;

  constructor(
    private readonly decoder: Decoder,
    { maxBatch = 32, prefillTokens = 256, maxWaiting = Number.POSITIVE_INFINITY }: SchedulerOptions = {},
  ) {
    for (const [name, value] of Object.entries({ maxBatch, prefillTokens, maxWaiting }))
      if (!(value >= 1)) throw new ModelFolderError('USAGE', `${name} is ${value}, expected a whole number ≥ 1`);
    this.maxBatch = maxBatch;
    this.prefillTokens = prefillTokens;
    this.maxWaiting = maxWaiting;
    this.cache = new KvCache(decoder.shape);
  }

  /** Sequences in the batch or with their prompt being read. */
  get active(): number {
    return this.decoding().length + (this.prefilling?.members.filter(Boolean).length ?? 0);
  }

  /** Sequences that wait for a place. */
  get queued(): number {
    return this.waiting.length;
  }

  /** Bytes of memory of the running batch's keys and values. */
  get cacheBytes(): number {
    return this.cache.bytes + (this.prefilling?.cache.bytes ?? 0);
  }

  /** @throws QueueFullError, and does not take the sequences (all or none), if too many wait. */
  submit(...sequences: ScheduledSequence[]): void {
    const places = Math.max(0, this.maxBatch - this.active);
    if (this.waiting.length + sequences.length > this.maxWaiting + places)
      throw new QueueFullError(this.waiting.length);
    this.waiting.push(...sequences);
    // Not at once: what is submitted in one go shares the first step.
    this.running ??= Promise.resolve().then(() => this.run());
  }

  /** Takes a sequence out, at once where it waits, else after the current step. Its `fail` is not called. */
  cancel(sequence: ScheduledSequence): void {
    const remove = <T>(list: T[], of: (item: T) => unknown, instead: T[]) => {
      const at = list.findIndex((item) => of(item) === sequence);
      if (at >= 0) list.splice(at, 1, ...instead);
    };
    remove(this.waiting, (item) => item, []);
    remove(this.slots, (slot) => slot?.sequence, [undefined]);
    remove(this.prefilling?.members ?? [], (member) => member, [undefined]);
  }

  /** Resolves when nothing is left to do. */
  async idle(): Promise<void> {
    while (this.running) await this.running;
  }

  private async run(): Promise<void> {
    while (this.waiting.length > 0 || this.active > 0) {
      await breathe();
      this.prefilling ??= this.nextPrefill();
      const { prefilling } = this;
      if (prefilling) await this.attempt(prefilling.members, () => this.prefill(prefilling));
      if (this.decoding().length > 0) {
        await this.attempt(this.sequences(), async () => {
          await this.tidy();
          await this.decode();
        });
      }
    }
    this.running = undefined;
    this.discard();
  }

  /** Runs a step; if it fails, so do its sequences, and the others go on. */
  private async attempt(members: readonly (ScheduledSequence | undefined)[], step: () => Promise<void>): Promise<void> {
    const involved = [...members];
    try {
      await step();
    } catch (error) {
      if (this.prefilling?.members === members) this.prefilling = undefined;
      for (const sequence of involved) {
        if (!sequence) continue;
        this.cancel(sequence);
        sequence.fail(error);
      }
    }
  }

  /** The prompts that are read next: as many short ones as fit in a step, or a long one alone. */
  private nextPrefill(): Prefill | undefined {
    const members: ScheduledSequence[] = [];
    let longest = 0;
    for (let places = this.maxBatch - this.decoding().length; places > 0 && this.waiting.length > 0; places--) {
      const length = Math.max(longest, (this.waiting[0] as ScheduledSequence).prompt.length);
      if (members.length > 0 && length * (members.length + 1) > this.prefillTokens) break;
      longest = length;
      members.push(this.waiting.shift() as ScheduledSequence);
    }
    if (members.length === 0) return undefined;
    const cache = new KvCache(this.decoder.shape);
    cache.reset(members.length);
    return { members, longest, cache };
  }

  private async prefill(work: Prefill): Promise<void> {
    const { members, longest, cache } = work;
    const fresh = Math.min(longest - cache.tokens, Math.max(1, this.prefillTokens));
    const from = cache.tokens;
    const logits = await this.step(cache, fresh, (row) => {
      // A cancelled member's tokens are gone with it: its row is padding from here on.
      const { prompt = [0] } = members[row] ?? {};
      const padding = longest - prompt.length;
      return { length: Math.max(0, from + fresh - padding), token: (i) => prompt[from + i - padding] ?? 0 };
    });
    if (cache.tokens < longest && members.some(Boolean)) return;
    this.prefilling = undefined;
    const started = members.map((sequence): Slot | undefined => {
      const token = sequence && this.choose(sequence, logits.at(members.indexOf(sequence), fresh - 1));
      return token === undefined || !sequence ? undefined : { sequence, token, length: sequence.prompt.length };
    });
    await this.join(cache, started);
  }

  private async decode(): Promise<void> {
    const slots = [...this.slots];
    const logits = await this.step(this.cache, 1, (row) => ({
      length: (slots[row]?.length ?? 0) + 1,
      token: () => slots[row]?.token ?? 0,
    }));
    for (const [row, slot] of slots.entries()) {
      // Cancelled during the step.
      if (!slot || this.slots[row] !== slot) continue;
      const token = this.choose(slot.sequence, logits.at(row, 0));
      if (token === undefined) {
        this.slots[row] = undefined;
        continue;
      }
      slot.length++;
      slot.token = token;
      await breathe();
    }
  }

  private choose(sequence: ScheduledSequence, logits: Float32Array): number | undefined {
    try {
      return sequence.next(logits);
    } catch (error) {
      sequence.fail(error);
      return undefined;
    }
  }

  /** Runs the model on `fresh` new tokens in each row; `length` counts the row's tokens with them, the rest is padding. */
  private async step(
    cache: KvCache,
    fresh: number,
    row: (row: number) => { length: number; token: (index: number) => number },
  ) {
    const { rows } = cache;
    const total = cache.tokens + fresh;
    const [ids, positions, mask] = [rows * fresh, rows * fresh, rows * total].map((size) => new BigInt64Array(size));
    for (let r = 0; r < rows; r++) {
      const { length, token } = row(r);
      mask?.fill(1n, (r + 1) * total - length, (r + 1) * total);
      for (let i = Math.max(0, fresh - length); i < fresh; i++) {
        (ids as BigInt64Array)[r * fresh + i] = BigInt(token(i));
        (positions as BigInt64Array)[r * fresh + i] = BigInt(length - fresh + i);
      }
    }
    const tensor = (data: BigInt64Array | undefined, columns: number) =>
      new Tensor('int64', data as BigInt64Array, [rows, columns]);
    const { logits } = await this.decoder.run({
      ids: tensor(ids, fresh),
      positions: tensor(positions, fresh),
      mask: tensor(mask, total),
      ...cache.begin(fresh),
    });
    cache.commit(fresh);
    return logits;
  }

  /** Puts rows whose prompt is read into the batch: as the batch, into free rows, or by building it anew. */
  private async join(cache: KvCache, started: readonly (Slot | undefined)[]): Promise<void> {
    const fresh = started.flatMap((slot, row) => (slot ? [{ slot, source: { cache, row, length: slot.length } }] : []));
    if (fresh.length === 0) return;
    if (this.decoding().length === 0) {
      this.cache = cache;
      this.slots = [...started];
      return;
    }
    const free = this.slots.flatMap((slot, row) => (slot ? [] : [row]));
    if (free.length >= fresh.length && fresh.every(({ slot }) => slot.length <= this.cache.tokens)) {
      for (const [i, { slot, source }] of fresh.entries()) {
        const row = free[i] as number;
        await this.cache.replaceRow(row, source);
        this.slots[row] = slot;
      }
      return;
    }
    await this.rebuild(fresh);
  }

  /** Drops free rows that nobody waits for, and columns that are padding in all rows. */
  private async tidy(): Promise<void> {
    const decoding = this.decoding();
    const longest = Math.max(...decoding.map(({ length }) => length));
    const spare = decoding.length < this.slots.length && this.waiting.length === 0 && !this.prefilling;
    if (spare || this.cache.tokens > 1.25 * longest + 32) await this.rebuild([]);
  }

  private async rebuild(fresh: readonly { slot: Slot; source: CacheRow }[]): Promise<void> {
    const { cache } = this;
    const kept = this.slots.flatMap((slot, row) =>
      slot ? [{ slot, source: { cache, row, length: slot.length } }] : [],
    );
    const all = [...kept, ...fresh];
    const before = this.slots;
    await cache.rebuild(all.map(({ source }) => source));
    // What was cancelled while rows were copied stays out.
    const cancelled = new Set(kept.filter(({ slot }) => !before.includes(slot)).map(({ slot }) => slot));
    this.slots = all.map(({ slot }) => (cancelled.has(slot) ? undefined : slot));
  }

  private decoding(): Slot[] {
    return this.slots.filter((slot) => slot !== undefined);
  }

  private sequences(): ScheduledSequence[] {
    return this.decoding().map(({ sequence }) => sequence);
  }

  private discard(): void {
    this.slots = [];
    this.cache = new KvCache(this.decoder.shape);
  }
}
