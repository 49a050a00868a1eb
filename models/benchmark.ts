import { ModelFolderError } from './errors.js';
import { Random } from './generation/random.js';
import type { TextModel } from './text-model.js';
import { weightBytesPerStep } from './weight-bytes.js';

/** What to measure. */
export interface BenchmarkOptions {
  /** Tokens of each prompt, drawn at random. */
  readonly promptTokens: number;
  /** Tokens to generate for each. */
  readonly newTokens: number;
  /** Prompts at once. */
  readonly batches: readonly number[];
  /** Measurements of each batch, after one that is not counted. */
  readonly repeats: number;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** The speed of one batch size. */
export interface BatchSpeed {
  readonly batch: number;
  /** Tokens of prompts a second, from submission to the first token. */
  readonly prefillTokensPerSecond: number;
  /** Median of the repeats. */
  readonly timeToFirstTokenMs: number;
  /** Between two tokens of the same sequence. */
  readonly timePerTokenP50Ms: number;
  readonly timePerTokenP95Ms: number;
  /** Tokens generated a second by all sequences together, after the first token. */
  readonly tokensPerSecond: number;
  /** Bytes of weights read a second while decoding, in GB/s (10⁹). */
  readonly weightGbPerSecond: number;
}

/** What was measured of a model. */
export interface Benchmark {
  /** The folder. */
  readonly model: string;
  readonly promptTokens: number;
  readonly newTokens: number;
  readonly repeats: number;
  /** Bytes of weights that a decoding step reads, shared by the batch. */
  readonly weightBytes: number;
  /** Largest resident memory of the process so far. */
  readonly peakMemoryBytes: number;
  readonly speeds: readonly BatchSpeed[];
}

/**
 * Measures generation as users get it: through the generator, its sampling (greedy) and its text included. The model's
 * generator must take the largest batch.
 *
 * @param folder what the measurement calls the model.
 */
export async function measureGeneration(
  folder: string,
  model: TextModel,
  options: BenchmarkOptions,
): Promise<Benchmark> {
  const { promptTokens, newTokens, batches, repeats, onProgress } = options;
  const vocabSize = model.config.vocabSize ?? model.decoder.vocabulary;
  if (vocabSize === undefined)
    throw new ModelFolderError(
      'CONFIG',
      `the config.json of ${folder} has no vocab_size, which prompts are drawn by; add it`,
    );
  const elementBytes = model.decoder.shape.type === 'float16' ? 2 : 4;
  const weightBytes = weightBytesPerStep(model.path, elementBytes);
  const speeds: BatchSpeed[] = [];
  for (const [i, batch] of batches.entries()) {
    const runs: number[][][] = [];
    for (let repeat = 0; repeat <= repeats; repeat++) {
      const times = await runOnce(model, vocabSize, batch, options);
      // The first warms memory and threads up.
      if (repeat > 0) runs.push(times);
      onProgress?.(i * (repeats + 1) + repeat + 1, batches.length * (repeats + 1));
    }
    speeds.push(evaluate(runs, batch, promptTokens, weightBytes));
  }
  const peakMemoryBytes = process.resourceUsage().maxRSS * 1024;
  return { model: folder, promptTokens, newTokens, repeats, weightBytes, peakMemoryBytes, speeds };
}

/** Times of all tokens of each sequence since the prompts were given. */
async function runOnce(
  model: TextModel,
  vocabSize: number,
  batch: number,
  { promptTokens, newTokens, signal }: BenchmarkOptions,
): Promise<number[][]> {
  const random = new Random(batch);
  const prompts = Array.from({ length: batch }, () =>
    Array.from({ length: promptTokens }, () => Math.floor(random.next() * vocabSize)),
  );
  const times: number[][] = prompts.map(() => []);
  const started = performance.now();
  const generations = model.generator.start(prompts, { maxNewTokens: newTokens, stopTokenIds: [], signal });
  for (const [i, generation] of generations.entries())
    generation.onPiece(() => times[i]?.push(performance.now() - started));
  await Promise.all(generations.map(({ result }) => result));
  await model.generator.scheduler.idle();
  return times;
}

function evaluate(runs: readonly number[][][], batch: number, promptTokens: number, weightBytes: number): BatchSpeed {
  const firsts = runs.flatMap((times) => times.map((row) => row[0] as number));
  // Prompts that do not fit in one step come one after the other: the batch is whole when the last one has come.
  const whole = runs.map((times) => Math.max(...times.map((row) => row[0] as number)));
  const gaps = runs.flatMap((times, run) =>
    times.flatMap((row) =>
      row.flatMap((time, i) =>
        i > 0 && (row[i - 1] as number) >= (whole[run] as number) ? [time - (row[i - 1] as number)] : [],
      ),
    ),
  );
  const mean = gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length;
  return {
    batch,
    prefillTokensPerSecond: (1000 * batch * promptTokens) / percentile(whole, 0.5),
    timeToFirstTokenMs: percentile(firsts, 0.5),
    timePerTokenP50Ms: percentile(gaps, 0.5),
    timePerTokenP95Ms: percentile(gaps, 0.95),
    tokensPerSecond: (1000 * batch) / mean,
    weightGbPerSecond: weightBytes / mean / 1e6,
  };
}

/** The value below which a share of the values lies; NaN of none. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}
