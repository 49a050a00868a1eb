import { namesOf, requireNames } from '../arguments.js';
import type { Decoder } from '../decoder.js';
import { ModelFolderError } from '../errors.js';
import { type Batch, type ScheduledSequence, StepError } from './batch.js';
import { breathe } from './event-loop.js';
import { PaddedBatch } from './padded-batch.js';
import { RowBatch } from './row-batch.js';

export interface SchedulerOptions {
  /** Most sequences that are run at once; default 32. */
  readonly maxBatch?: number | undefined;
  /** Most tokens of prompts in one step: longer prompts take several. Default 1,024 on a GPU, else 256. */
  readonly prefillTokens?: number | undefined;
  /** Most sequences that wait for a place; default no limit. */
  readonly maxWaiting?: number | undefined;
  /**
   * Most bytes of keys and values on a GPU that stay reserved when all sequences have ended, with the steps that are recorded over them: so
   * the next sequences need not wait for either. Larger ones are given back; 0: nothing stays. Default 1 GiB. 16 sequences of OPT-13B with 320
   * tokens each take 4 GiB.
   */
  readonly idleCacheBytes?: number | undefined;
}

const NAMES = namesOf<SchedulerOptions>({
  ...{ maxBatch: true, prefillTokens: true, maxWaiting: true, idleCacheBytes: true },
});

const CLOSED = 'the model has been released; open it again';

/** Too many sequences wait already: try again later. */
export class QueueFullError extends ModelFolderError {
  constructor(waiting: number) {
    super('USAGE', `${waiting} prompts wait already, which is the limit; try again when some are done`);
  }
}

/**
 * Continuous batching: sequences join a running batch when their prompt is read and leave it when they end, whatever
 * the others do. Between two steps of the batch at most one step of prefill runs, so that a long prompt holds nobody
 * up for long. Each sequence gets the logits that it would get alone.
 */
export class Scheduler {
  private readonly waiting: ScheduledSequence[] = [];
  private readonly batch: Batch;
  private running: Promise<void> | undefined;
  /** A step has failed since the queue was empty last: what is left of those steps is not trusted. */
  private failed = false;
  private closed = false;
  private readonly maxBatch: number;
  private readonly maxWaiting: number;

  constructor(decoder: Decoder, options: SchedulerOptions = {}) {
    requireNames('the scheduler', options, NAMES);
    const {
      maxBatch = 32,
      prefillTokens = decoder.memory.prefillTokens,
      maxWaiting = Number.POSITIVE_INFINITY,
      idleCacheBytes = 2 ** 30,
    } = options;
    for (const [name, value] of Object.entries({ maxBatch, prefillTokens, maxWaiting })) {
      // There is a list of all places in the batch; the others may be without limit.
      const whole = Number.isInteger(value) || (value === Number.POSITIVE_INFINITY && name !== 'maxBatch');
      if (!whole || value < 1) throw new ModelFolderError('USAGE', `${name} is ${value}, expected a whole number ≥ 1`);
    }
    if (!(idleCacheBytes >= 0))
      throw new ModelFolderError('USAGE', `idleCacheBytes is ${idleCacheBytes}, expected a number ≥ 0`);
    this.maxBatch = maxBatch;
    this.maxWaiting = maxWaiting;
    const limits = { maxBatch, prefillTokens, idleCacheBytes };
    this.batch = decoder.hasRows() ? new RowBatch(decoder, limits) : new PaddedBatch(decoder, limits);
  }

  /** Sequences in the batch or with their prompt being read. */
  get active(): number {
    return this.batch.decoding.length + this.batch.reading.length;
  }

  /** Sequences that wait for a place. */
  get queued(): number {
    return this.waiting.length;
  }

  /** How many sequences it takes at most: those that run and those that wait. */
  get places(): number {
    return this.maxBatch + this.maxWaiting;
  }

  /** Bytes of memory reserved for keys and values: the running batch's, or what has stayed of the last one's. */
  get cacheBytes(): number {
    return this.batch.cacheBytes;
  }

  /**
   * @throws QueueFullError, and does not take the sequences (all or none), if too many wait; ModelFolderError `USAGE` when closed, and for more
   * sequences than there is ever place for.
   */
  submit(...sequences: ScheduledSequence[]): void {
    if (this.closed) throw new ModelFolderError('USAGE', CLOSED);
    const most = this.places;
    if (sequences.length > most)
      throw new ModelFolderError(
        'USAGE',
        `${sequences.length} texts are asked for at once, expected at most ${most}: ${this.maxBatch} run and ${this.maxWaiting} wait`,
      );
    const places = Math.max(0, this.maxBatch - this.active);
    if (this.waiting.length + sequences.length > this.maxWaiting + places)
      throw new QueueFullError(this.waiting.length);
    this.waiting.push(...sequences);
    // Not at once: what is submitted in one go shares the first step.
    this.running ??= Promise.resolve().then(() => this.run());
  }

  /** Takes a sequence out, at once where it waits, else after the current step. Its `fail` is not called. */
  cancel(sequence: ScheduledSequence): void {
    const at = this.waiting.indexOf(sequence);
    if (at >= 0) this.waiting.splice(at, 1);
    this.batch.cancel(sequence);
  }

  /** Resolves when nothing is left to do. */
  async idle(): Promise<void> {
    while (this.running) await this.running;
  }

  /** Ends all sequences with an error after the current step, and gives all memory back. Idempotent. */
  async close(): Promise<void> {
    this.closed = true;
    await this.idle();
    await this.batch.clear();
  }

  private async run(): Promise<void> {
    const { batch, waiting } = this;
    try {
      do {
        this.failed = false;
        try {
          await this.work();
        } catch (error) {
          // No step has failed, which is for those in it, but what leads all of them.
          this.failed = true;
          this.end(this.all(), error);
        } finally {
          await (this.failed ? batch.clear() : batch.rest());
        }
        // Prompts may have come meanwhile.
      } while (waiting.length > 0);
    } finally {
      this.running = undefined;
    }
  }

  /** Runs steps until nobody is left. */
  private async work(): Promise<void> {
    const { batch, waiting } = this;
    while (waiting.length > 0 || this.active > 0) {
      await breathe();
      if (this.closed) this.end(this.all(), new ModelFolderError('USAGE', CLOSED));
      batch.admit(waiting);
      if (batch.reading.length > 0) await this.attempt(batch.reading, () => batch.prefill());
      if (batch.decoding.length > 0) await this.attempt(batch.decoding, () => batch.decode(waiting.length > 0));
    }
  }

  /** Runs a step; if it fails, so do its sequences, and the others go on. */
  private async attempt(involved: readonly ScheduledSequence[], step: () => Promise<void>): Promise<void> {
    try {
      await step();
    } catch (error) {
      this.failed = true;
      if (error instanceof StepError) this.end(error.sequences, error.cause);
      else this.end(involved, error);
    }
  }

  /** Sequences that wait or are in the batch. */
  private all(): ScheduledSequence[] {
    return [...this.waiting, ...this.batch.reading, ...this.batch.decoding];
  }

  /** Takes sequences out and tells them of the error that ends them. */
  private end(sequences: readonly ScheduledSequence[], error: unknown): void {
    for (const sequence of sequences) this.cancel(sequence);
    for (const sequence of sequences) sequence.fail(error);
  }
}
