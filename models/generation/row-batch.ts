import type { RowDecoder } from '../decoder.js';
import {
  type Batch,
  type BatchLimits,
  choose,
  type ScheduledSequence,
  type Slot,
  StepError,
  StepIntegers,
  takePrompts,
} from './batch.js';
import type { DecodeRow, NextTokens } from './decode-step.js';
import { DecodeSteps } from './decode-steps.js';
import { breathe } from './event-loop.js';
import { LogitsMemory } from './logits-memory.js';
import { RowCache } from './row-cache.js';

/** Prompts being read into rows `first` and following: one in chunks, or several short ones in a single step. */
interface Prefill {
  readonly first: number;
  readonly members: (ScheduledSequence | undefined)[];
  /** Tokens read so far; of several prompts none. */
  done: number;
}

/** A sequence that decodes, and which row of the cache is its own. */
interface RowSlot extends Slot {
  row: number;
}

/** A decoding step that has been started. */
interface Flight {
  /** What its rows, one after the other, were for. */
  readonly slots: readonly (RowSlot | undefined)[];
  readonly result: Promise<NextTokens>;
}

/** What a row has in a step. */
interface RowInput {
  /** Tokens in the cache. */
  readonly past: number;
  readonly ids: readonly number[];
}

/**
 * A batch for decoders that update a cache in place: each sequence has a row of its own from its first token on, and
 * no step or newcomer copies what is there. A step takes the rows between the first and the last that run, or more of
 * them (DecodeSteps); a free or waiting row among them computes a token that nobody reads, at a position that is written
 * anew before it counts.
 */
export class RowBatch implements Batch {
  private readonly slots: (RowSlot | undefined)[] = [];
  private prefilling: Prefill | undefined;
  /** The next step, where it was started before what the last one gave was read. */
  private ahead: Flight | undefined;
  private readonly cache: RowCache;
  private readonly steps: DecodeSteps;
  private readonly logits: LogitsMemory;

  constructor(
    private readonly decoder: RowDecoder,
    private readonly limits: BatchLimits,
  ) {
    this.cache = new RowCache(decoder.shape, limits.maxBatch, decoder.memory, limits.idleCacheBytes);
    this.logits = new LogitsMemory(decoder.shape);
    this.steps = new DecodeSteps(decoder, this.cache, this.logits, limits.maxBatch);
  }

  get reading(): ScheduledSequence[] {
    return this.prefilling?.members.filter((member) => member !== undefined) ?? [];
  }

  get decoding(): ScheduledSequence[] {
    return this.slots.filter((slot) => slot !== undefined).map(({ sequence }) => sequence);
  }

  get cacheBytes(): number {
    return this.cache.bytes;
  }

  cancel(sequence: ScheduledSequence): void {
    const row = this.slots.findIndex((slot) => slot?.sequence === sequence);
    if (row >= 0) this.slots[row] = undefined;
    const member = this.prefilling?.members.indexOf(sequence) ?? -1;
    if (member >= 0) (this.prefilling as Prefill).members[member] = undefined;
  }

  admit(waiting: ScheduledSequence[]): void {
    if (this.reading.length > 0) return;
    this.prefilling = undefined;
    const taken = Array.from({ length: this.limits.maxBatch }, (_, row) => this.slots[row] !== undefined);
    const first = taken.indexOf(false);
    if (first < 0) return;
    const end = taken.indexOf(true, first);
    const members = takePrompts(waiting, (end < 0 ? taken.length : end) - first, this.limits);
    if (members.length > 0) this.prefilling = { first, members, done: 0 };
  }

  async prefill(): Promise<void> {
    const work = this.prefilling as Prefill;
    const { first, members, done } = work;
    await this.landed();
    await this.reserve(work);
    if (this.reading.length === 0) return;
    const rows = members.map((sequence): RowInput => {
      const { prompt } = sequence ?? { prompt: [0] };
      const chunk = members.length > 1 ? prompt : prompt.slice(done, done + this.limits.prefillTokens);
      return { past: done, ids: chunk };
    });
    const next = await this.read(first, rows);
    const [only] = members;
    work.done += (rows[0] as RowInput).ids.length;
    if (members.length === 1 && only && work.done < only.prompt.length) return;
    for (const [row, sequence] of members.entries()) {
      const token = sequence && next(sequence, row);
      // Who gets a token may cancel itself or others: until it has its slot, a sequence is a member.
      if (token === undefined || !sequence || members[row] !== sequence) continue;
      members[row] = undefined;
      this.slots[first + row] = { sequence, token, length: sequence.prompt.length, row: first + row };
    }
    this.prefilling = undefined;
  }

  /**
   * Runs prompts, or chunks of them, into their rows.
   * @returns what has a sequence choose the token after those of its row. Where all are greedy, their many logits stay
   * where they are computed.
   */
  private async read(
    first: number,
    rows: readonly RowInput[],
  ): Promise<(sequence: ScheduledSequence, row: number) => number | undefined> {
    const input = this.input(first, rows);
    const last = (row: number) => (rows[row] as RowInput).ids.length - 1;
    if (this.decoder.tellsLikeliest && this.reading.every((sequence) => sequence.greedy)) {
      const [, fresh] = input.ids.dims as [number, number];
      const likeliest = await this.decoder.likeliest(input);
      return (sequence, row) => choose(sequence, undefined, likeliest[row * fresh + last(row)]);
    }
    const logits = this.logits.tensor([...input.ids.dims, this.decoder.vocabulary]);
    const output = await this.decoder.run({ ...input, logits });
    return (sequence, row) => choose(sequence, output.logits.at(row, last(row)));
  }

  /** Makes room for what the prompts' sequences may become. One that does not fit ends with the memory's error. */
  private async reserve({ first, members, done }: Prefill): Promise<void> {
    const lengths = Array.from(this.slots, (slot) => {
      const fresh = this.ahead?.slots.includes(slot) ? 1 : 0;
      return slot ? Math.min(slot.length + fresh, this.cache.room) : 0;
    });
    for (const row of members.keys()) lengths[first + row] = done;
    const rows = this.steps.rounded(first + members.length);
    for (const sequence of this.reading.sort((a, b) => b.limit - a.limit)) {
      if (this.cache.fits(rows, sequence.limit)) return;
      // Steps show rows where they lie now, and hold that memory: it may be needed for the larger cache.
      await this.steps.clear();
      try {
        await this.cache.reserve(rows, sequence.limit, lengths);
        return;
      } catch (error) {
        this.cancel(sequence);
        sequence.fail(error);
      }
    }
  }

  async decode(more: boolean): Promise<void> {
    const flight = this.ahead ?? (await this.start(more));
    this.ahead = undefined;
    if (!flight) return;
    const { likeliest, logits } = await flight.result.catch((error: unknown) => {
      throw new StepError(
        this.live(flight).map(({ slot }) => slot.sequence),
        error,
      );
    });
    // The array is the next step's, too.
    const tokens = likeliest && Array.from(likeliest, Number);
    const live = this.live(flight);
    if (tokens) await this.runAhead(live, tokens, more);
    for (const { slot, i } of live) {
      if (!this.holds(slot)) continue;
      const token = choose(slot.sequence, logits?.at(i, 0), tokens?.[i]);
      if (token === undefined) this.slots[slot.row] = undefined;
      else if (logits) this.advance(slot, token);
      await breathe();
    }
  }

  /** Those that a step computed for, and their rows in it, but for who was cancelled meanwhile. */
  private live({ slots }: Flight): { readonly slot: RowSlot; readonly i: number }[] {
    const live: { slot: RowSlot; i: number }[] = [];
    for (const [i, slot] of slots.entries()) if (slot && this.holds(slot)) live.push({ slot, i });
    return live;
  }

  /** Whether the sequence is still in the batch. */
  private holds(slot: RowSlot): boolean {
    return this.slots[slot.row] === slot;
  }

  /** Starts a step over all sequences, if there are any. */
  private async start(more: boolean): Promise<Flight | undefined> {
    if (!more && !this.prefilling) await this.compact();
    const used = this.slots.findIndex((slot) => slot !== undefined);
    if (used < 0) return undefined;
    const last = this.slots.findLastIndex((slot) => slot !== undefined);
    const range = this.steps.range({ first: used, count: last + 1 - used });
    const { first, count } = range;
    const slots = this.slots.slice(first, first + count);
    const rows = Array.from({ length: count }, (_, i): DecodeRow => {
      const slot = slots[i];
      if (!slot) return { past: this.readTokens(first + i), token: 0 };
      // A sequence that is ending may have no room left, nor need it.
      return { past: Math.min(slot.length, this.cache.room - 1), token: slot.token };
    });
    const step = await this.steps.step(range, 1 + Math.max(...rows.map(({ past }) => past)));
    const greedy = this.decoding.every((sequence) => sequence.greedy);
    return { slots, result: step.run(rows, greedy) };
  }

  /**
   * Where all sequences take the likeliest token, the next step is started before texts are made of these tokens: the
   * device need not wait for JavaScript. What it gives to a sequence that ends with this token is dropped.
   */
  private async runAhead(
    live: readonly { readonly slot: RowSlot; readonly i: number }[],
    tokens: readonly number[],
    more: boolean,
  ): Promise<void> {
    for (const { slot, i } of live) this.advance(slot, tokens[i] as number);
    if (this.prefilling || !live.some(({ slot }) => slot.length + 1 < slot.sequence.limit)) return;
    // One that has joined since may need logits, and the next prompt that is read writes its own over them.
    if (!this.decoding.every((sequence) => sequence.greedy)) return;
    this.ahead = await this.start(more);
    // Who awaits it handles its error, a little later.
    this.ahead?.result.catch(() => {});
  }

  /** The token that was fed is in the cache now, and `token` comes next. */
  private advance(slot: RowSlot, token: number): void {
    slot.length++;
    slot.token = token;
  }

  /** When no step is running; its error is for those who are in it. @returns whether it has none. */
  private async landed(): Promise<boolean> {
    if (!this.ahead) return true;
    return this.ahead.result.then(
      () => true,
      () => false,
    );
  }

  /**
   * Recorded steps stay, and the cache that they were recorded over: to make them anew, the next sequences would wait. Of steps that are
   * not recorded little is saved, while their cache is memory that others could use.
   */
  async rest(): Promise<void> {
    const sound = await this.landed();
    const worthwhile = this.decoder.memory.records && this.cache.bytes <= this.limits.idleCacheBytes;
    if (!sound || !worthwhile) return this.clear();
    this.forget();
  }

  async clear(): Promise<void> {
    await this.landed();
    this.forget();
    try {
      await this.steps.clear();
    } finally {
      this.logits.clear();
      this.cache.clear();
    }
  }

  /** Lets go of sequences, of which none is left but in a step that has landed. */
  private forget(): void {
    this.ahead = undefined;
    this.slots.length = 0;
    this.prefilling = undefined;
  }

  /** Tensors of a step of prefill. A row of fewer new tokens than the longest has padding behind them. */
  private input(first: number, rows: readonly RowInput[]) {
    const fresh = Math.max(...rows.map(({ ids }) => ids.length));
    const width = Math.max(...rows.map(({ past, ids }) => past + ids.length));
    const integers = new StepIntegers(rows.length, fresh, width);
    for (const [row, { past, ids }] of rows.entries()) {
      integers.keep(row, 0, past + ids.length);
      for (const [i, id] of ids.entries()) integers.set(row, i, id, past + i);
    }
    const cache = this.cache.view(first, rows.length);
    return { ...integers.tensors(), cache, present: cache };
  }

  /** Tokens of a prompt that the row holds so far. */
  private readTokens(row: number): number {
    const { first, members, done } = this.prefilling ?? { first: 0, members: [], done: 0 };
    return row >= first && row < first + members.length ? done : 0;
  }

  /** Moves the last row into a free one before it while there is one, so that steps have no more rows than they need. */
  private async compact(): Promise<void> {
    for (;;) {
      const from = this.slots.findLastIndex((slot) => slot !== undefined);
      if (this.steps.rounded(from + 1) === this.steps.rounded(this.decoding.length)) return;
      const { first } = this.steps.range({ first: this.slots.findIndex((slot) => slot !== undefined), count: 1 });
      const to = this.slots.findIndex((slot, row) => slot === undefined && row >= first && row < from);
      const slot = this.slots[from];
      if (!slot || to < 0) return;
      await this.cache.move(from, to, slot.length);
      // Not if it was cancelled meanwhile.
      if (!this.holds(slot)) continue;
      this.slots[to] = slot;
      slot.row = to;
      this.slots[from] = undefined;
    }
  }
}
