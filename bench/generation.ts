/**
 * `npm run bench:generation -- <folder>`: what generation costs beyond the model. The generator (sampling, text,
 * batching) and bare `session.run` calls on a cache in place take turns in one session; the main thread's share
 * and the event loop's lag are taken while the generator runs.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import { Command } from 'commander';
import { addModelOptions, type ModelOptions, openModel } from '../cli/generation-options.js';
import { wholeNumber } from '../cli/option-parsers.js';
import { formatTable } from '../cli/terminal.js';
import { StepIntegers } from '../models/generation/batch.js';
import { Random } from '../models/generation/random.js';
import { RowCache } from '../models/generation/row-cache.js';
import type { TextModel } from '../models/index.js';
import { tokenizerOrNumbers } from '../models/number-tokenizer.js';
import { readOptConfig } from '../models/opt/config.js';
import { environment } from './environment.js';
import { mainThreadTime } from './main-thread.js';
import { median } from './statistics.js';

interface Options extends ModelOptions {
  batch: string;
  promptTokens: number;
  newTokens: number;
  turns: number;
  output?: string;
}

interface Row {
  batch: number;
  /** Median milliseconds of a step. */
  sessionStep: number;
  generatorStep: number;
  /** Median over the turns of generator step / session step. */
  ratio: number;
  /** The main thread's processor time while the generator decoded, as a share of the time. */
  mainThreadShare: number;
  /** Milliseconds by which a timer came late while the generator decoded. */
  lagP50: number;
  lagP99: number;
  lagMax: number;
}

async function main(folder: string, options: Options): Promise<void> {
  const { vocabSize } = await readOptConfig(folder);
  const batches = options.batch.split(',').map(wholeNumber(1));
  const most = Math.max(...batches);
  const scheduling = { maxBatch: most, prefillTokens: most * options.promptTokens };
  const model = await openModel(folder, options, scheduling, await tokenizerOrNumbers(folder));
  if (!model.decoder.shape.inPlace) throw new Error(`${folder} was exported without a cache in place`);
  const rows: Row[] = [];
  for (const batch of batches) rows.push(await measure(model, vocabSize, batch, options));
  await model.session.release();
  const { promptTokens, newTokens, turns } = options;
  const result = {
    what: 'generation',
    model: path.basename(path.resolve(folder)),
    provider: options.stock ? 'stock' : 'flashllm',
    ...{ promptTokens, newTokens, turns },
    environment: environment(),
    rows,
  };
  print(rows);
  if (options.output === undefined) return;
  await mkdir(path.dirname(options.output), { recursive: true });
  await writeFile(options.output, `${JSON.stringify(result, undefined, 1)}\n`);
}

async function measure(model: TextModel, vocabSize: number, batch: number, options: Options): Promise<Row> {
  const random = new Random(batch);
  const prompts = Array.from({ length: batch }, () =>
    Array.from({ length: options.promptTokens }, () => Math.floor(random.next() * vocabSize)),
  );
  const turns: { session: number; generator: { step: number; share: number }; lag: IntervalHistogram }[] = [];
  for (let turn = 0; turn <= options.turns; turn++) {
    const session = await sessionSteps(model, prompts, options.newTokens);
    const generator = await generatorSteps(model, prompts, options.newTokens);
    // In a turn of its own: the monitor wakes the thread every millisecond.
    const lag = monitorEventLoopDelay({ resolution: 1 });
    await generatorSteps(model, prompts, options.newTokens, lag);
    // The first warms memory and threads up.
    if (turn > 0) turns.push({ session, generator, lag });
  }
  // The monitor's own timer of 1 ms is part of what it reports.
  const late = turns.map(({ lag }) =>
    [lag.percentile(50), lag.percentile(99), lag.max].map((delay) => Math.max(0, delay / 1e6 - 1)),
  );
  return {
    batch,
    sessionStep: median(turns.map(({ session }) => session)),
    generatorStep: median(turns.map(({ generator }) => generator.step)),
    ratio: median(turns.map(({ session, generator }) => generator.step / session)),
    mainThreadShare: median(turns.map(({ generator }) => generator.share)),
    lagP50: median(late.map(([p50]) => p50 as number)),
    lagP99: median(late.map(([, p99]) => p99 as number)),
    lagMax: Math.max(...late.map(([, , max]) => max as number)),
  };
}

/** Milliseconds of a decoding step of the bare session, over as many steps and positions as the generator takes. */
async function sessionSteps(
  { decoder }: TextModel,
  prompts: readonly (readonly number[])[],
  newTokens: number,
): Promise<number> {
  const rows = prompts.length;
  const length = prompts[0]?.length as number;
  const cache = new RowCache(decoder.shape, rows, decoder.memory);
  await cache.reserve(rows, length + newTokens, []);
  const view = cache.view(0, rows);
  const run = async (past: number, tokens: readonly (readonly number[])[]) => {
    const fresh = tokens[0]?.length as number;
    const integers = new StepIntegers(rows, fresh, past + fresh);
    for (const [row, ids] of tokens.entries()) {
      integers.keep(row, 0, past + fresh);
      for (const [i, id] of ids.entries()) integers.set(row, i, id, past + i);
    }
    await decoder.run({ ...integers.tensors(), cache: view, present: view });
  };
  await run(0, prompts);
  const started = performance.now();
  for (let i = 0; i < newTokens - 1; i++)
    await run(
      length + i,
      prompts.map((ids) => [ids[0] as number]),
    );
  return (performance.now() - started) / (newTokens - 1);
}

/** Milliseconds between two tokens of the generator, and the main thread's share meanwhile. */
async function generatorSteps(
  { generator }: TextModel,
  prompts: readonly (readonly number[])[],
  newTokens: number,
  lag?: IntervalHistogram,
): Promise<{ step: number; share: number }> {
  const generations = generator.start(prompts, { maxNewTokens: newTokens, stopTokenIds: [] });
  let first = 0;
  let last = 0;
  let tokens = 0;
  let before = mainThreadTime();
  let share = 0;
  for (const generation of generations)
    generation.onPiece(() => {
      tokens++;
      if (tokens === generations.length) {
        first = performance.now();
        before = mainThreadTime();
        lag?.enable();
      }
      if (tokens === generations.length * newTokens) {
        last = performance.now();
        share = (mainThreadTime() - before) / (last - first);
        lag?.disable();
      }
    });
  await Promise.all(generations.map(({ result }) => result));
  await generator.scheduler.idle();
  return { step: (last - first) / (newTokens - 1), share };
}

function print(rows: readonly Row[]): void {
  const headers = ['batch', 'session ms', 'generator ms', 'ratio', 'main thread', 'lag p50 ms', 'p99', 'max'];
  const table = rows.map((row) => [
    String(row.batch),
    row.sessionStep.toFixed(2),
    row.generatorStep.toFixed(2),
    row.ratio.toFixed(3),
    `${(100 * row.mainThreadShare).toFixed(1)} %`,
    ...[row.lagP50, row.lagP99, row.lagMax].map((value) => value.toFixed(2)),
  ]);
  const columns = headers.map((header) => ({ header, align: 'right' as const }));
  process.stdout.write(`${formatTable(columns, table)}\n`);
}

await addModelOptions(
  new Command('bench:generation')
    .description('Generation through the library against the session alone; event loop under load.')
    .argument('<folder>', 'a folder that flashllm export or rewrite wrote'),
)
  .option('--batch <list>', 'prompts at once, separated by commas', '1,8,32')
  .option('--prompt-tokens <number>', 'tokens of each prompt', wholeNumber(1), 64)
  .option('--new-tokens <number>', 'tokens to generate for each', wholeNumber(2), 64)
  .option('--turns <number>', 'measurements of each', wholeNumber(1), 5)
  .option('-o, --output <file>', 'also write the result as JSON')
  .action(main)
  .parseAsync();
