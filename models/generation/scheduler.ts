import type { Decoder } from '../decoder.js';
import { ModelFolderError } from '../errors.js';
import { type Batch, type ScheduledSequence, StepError } from './batch.js';
import { breathe } from './event-loop.js';
import { PaddedBatch } from './padded-batch.js';
import { RowBatch } from './row-batch.js';

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

/**
 * Continuous batching: sequences join a running batch when their prompt is read and leave it when they end, whatever
 * the others do. Between two steps of the batch at most one step of prefill runs, so that a long prompt holds nobody
 * up for long. Each sequence gets the logits that it would get alone.
 */
export class Scheduler {
  private readonly waiting: ScheduledSequence[] = [];
  private readonly batch: Batch;
  private running: Promise<void> | undefined;
  private readonly maxBatch: number;
  private readonly maxWaiting: number;

  constructor(
    decoder: Decoder,
    { maxBatch = 32, prefillTokens = 256, maxWaiting = Number.POSITIVE_INFINITY }: SchedulerOptions = {},
  ) {
    for (const [name, value] of Object.entries({ maxBatch, prefillTokens, maxWaiting }))
      if (!(value >= 1)) throw new ModelFolderError('USAGE', `${name} is ${value}, expected a whole number ≥ 1`);
    this.maxBatch = maxBatch;
    this.maxWaiting = maxWaiting;
    const limits = { maxBatch, prefillTokens };
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

  /** Bytes of memory reserved for the running batch's keys and values. */
  get cacheBytes(): number {
    return this.batch.cacheBytes;
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
    const at = this.waiting.indexOf(sequence);
    if (at >= 0) this.waiting.splice(at, 1);
    this.batch.cancel(sequence);
  }

  /** Resolves when nothing is left to do. */
  async idle(): Promise<void> {
    while (this.running) await this.running;
  }

  private async run(): Promise<void> {
    const { batch, waiting } = this;
    try {
      do {
        try {
          await this.work();
        } catch (error) {
          // No step has failed, which is for those in it, but what leads all of them.
          this.end([...waiting, ...batch.reading, ...batch.decoding], error);
        } finally {
          await batch.clear();
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
      if (error instanceof StepError) this.end(error.sequences, error.cause);
      else this.end(involved, error);
    }
  }

  /** Takes sequences out and tells them of the error that ends them. */
  private end(sequences: readonly ScheduledSequence[], error: unknown): void {
    for (const sequence of sequences) this.cancel(sequence);
    for (const sequence of sequences) sequence.fail(error);
  }
}
