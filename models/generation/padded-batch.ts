import type { Decoder } from '../decoder.js';
import {
  type Batch,
  type BatchLimits,
  choose,
  type ScheduledSequence,
  type Slot,
  StepIntegers,
  takePrompts,
} from './batch.js';
import { breathe } from './event-loop.js';
import { type CacheRow, PaddedCache } from './padded-cache.js';

/** Prompts being read: one in chunks, or several short ones in a single step, padded on the left. */
interface Prefill {
  readonly members: (ScheduledSequence | undefined)[];
  readonly longest: number;
  readonly cache: PaddedCache;
}

/**
 * A batch for any decoder with past: its sequences end at the same position of a cache that each step copies, and are
 * padded on the left. Prompts are read into a cache of their own and join the batch by being copied.
 */
export class PaddedBatch implements Batch {
  private slots: (Slot | undefined)[] = [];
  private cache: PaddedCache;
  private prefilling: Prefill | undefined;
  /** Sequences whose prompt is read and whose rows are being copied into the batch. */
  private joining: (Slot | undefined)[] = [];

  constructor(
    private readonly decoder: Decoder,
    private readonly limits: BatchLimits,
  ) {
    this.cache = new PaddedCache(decoder.shape);
  }

  get reading(): ScheduledSequence[] {
    return this.prefilling?.members.filter((member) => member !== undefined) ?? [];
  }

  get decoding(): ScheduledSequence[] {
    return this.running().map(({ sequence }) => sequence);
  }

  get cacheBytes(): number {
    return this.cache.bytes + (this.prefilling?.cache.bytes ?? 0);
  }

  cancel(sequence: ScheduledSequence): void {
    for (const slots of [this.slots, this.joining]) {
      const row = slots.findIndex((slot) => slot?.sequence === sequence);
      if (row >= 0) slots[row] = undefined;
    }
    const member = this.prefilling?.members.indexOf(sequence) ?? -1;
    if (member >= 0) (this.prefilling as Prefill).members[member] = undefined;
  }

  admit(waiting: ScheduledSequence[]): void {
    if (this.reading.length > 0) return;
    this.prefilling = undefined;
    const members = takePrompts(waiting, this.limits.maxBatch - this.running().length, this.limits);
    if (members.length === 0) return;
    const cache = new PaddedCache(this.decoder.shape);
    cache.reset(members.length);
    this.prefilling = { members, longest: Math.max(...members.map(({ prompt }) => prompt.length)), cache };
  }

  async prefill(): Promise<void> {
    const { members, longest, cache } = this.prefilling as Prefill;
    const fresh = Math.min(longest - cache.tokens, this.limits.prefillTokens);
    const from = cache.tokens;
    const logits = await this.step(cache, fresh, (row) => {
      // A cancelled member's tokens are gone with it: its row is padding from here on.
      const { prompt = [0] } = members[row] ?? {};
      const padding = longest - prompt.length;
      return { length: Math.max(0, from + fresh - padding), token: (i) => prompt[from + i - padding] ?? 0 };
    });
    if (cache.tokens < longest) return;
    const tokens = members.map((sequence, row) => sequence && choose(sequence, logits.at(row, fresh - 1)));
    // Who got a token may have cancelled itself or others: they are no members any more.
    const started = members.map((sequence, row): Slot | undefined => {
      const token = tokens[row];
      return token === undefined || !sequence ? undefined : { sequence, token, length: sequence.prompt.length };
    });
    this.prefilling = undefined;
    this.joining = started;
    await this.join(cache, started);
    this.joining = [];
  }

  async decode(more: boolean): Promise<void> {
    await this.tidy(more);
    const slots = [...this.slots];
    const logits = await this.step(this.cache, 1, (row) => ({
      length: (slots[row]?.length ?? 0) + 1,
      token: () => slots[row]?.token ?? 0,
    }));
    for (const [row, slot] of slots.entries()) {
      // Cancelled during the step.
      if (!slot || this.slots[row] !== slot) continue;
      const token = choose(slot.sequence, logits.at(row, 0));
      if (token === undefined) {
        this.slots[row] = undefined;
        continue;
      }
      slot.length++;
      slot.token = token;
      await breathe();
    }
  }

  /** Nothing is recorded here that would save the next sequences time. */
  rest(): Promise<void> {
    return this.clear();
  }

  async clear(): Promise<void> {
    this.slots = [];
    this.prefilling = undefined;
    this.cache = new PaddedCache(this.decoder.shape);
  }

  /** Runs the model on `fresh` new tokens in each row; `length` counts the row's tokens with them, the rest is padding. */
  private async step(
    cache: PaddedCache,
    fresh: number,
    row: (row: number) => { length: number; token: (index: number) => number },
  ) {
    const total = cache.tokens + fresh;
    const integers = new StepIntegers(cache.rows, fresh, total);
    for (let r = 0; r < cache.rows; r++) {
      const { length, token } = row(r);
      integers.keep(r, total - length, total);
      for (let i = Math.max(0, fresh - length); i < fresh; i++) integers.set(r, i, token(i), length - fresh + i);
    }
    const { logits } = await this.decoder.run({ ...integers.tensors(), ...cache.begin(fresh) });
    cache.commit(fresh);
    return logits;
  }

  /** Puts rows whose prompt is read into the batch: as the batch, into free rows, or by building it anew. */
  private async join(cache: PaddedCache, started: readonly (Slot | undefined)[]): Promise<void> {
    const fresh = started.flatMap((slot, row) => (slot ? [{ slot, source: { cache, row, length: slot.length } }] : []));
    if (fresh.length === 0) return;
    if (this.running().length === 0) {
      this.cache = cache;
      this.slots = [...started];
      return;
    }
    const free = this.slots.flatMap((slot, row) => (slot ? [] : [row]));
    if (free.length >= fresh.length && fresh.every(({ slot }) => slot.length <= this.cache.tokens)) {
      for (const [i, { slot, source }] of fresh.entries()) {
        const row = free[i] as number;
        await this.cache.replaceRow(row, source);
        if (this.joining.includes(slot)) this.slots[row] = slot;
      }
      return;
    }
    await this.rebuild(fresh);
  }

  /** Drops free rows that nobody waits for, and columns that are padding in all rows. */
  private async tidy(more: boolean): Promise<void> {
    const running = this.running();
    const longest = Math.max(...running.map(({ length }) => length));
    const spare = running.length < this.slots.length && !more && !this.prefilling;
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
    this.slots = all.map(({ slot }) => (before.includes(slot) || this.joining.includes(slot) ? slot : undefined));
  }

  private running(): Slot[] {
    return this.slots.filter((slot) => slot !== undefined);
  }
}
