import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, constants, stat, writeFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { text as readAll } from 'node:stream/consumers';
import { Command, Option } from 'commander';
import { type Benchmark, measureGeneration } from '../../models/benchmark.js';
import { readGeneratorConfig, requireModel } from '../../models/model-folder.js';
import { tokenizerOrNumbers } from '../../models/number-tokenizer.js';
import { profileStep, type StepProfile } from '../../models/step-profile.js';
import { computesOnDevice } from '../../models/text-model.js';
import { requireRuntime } from '../../provider/backend.js';
import { deviceUse } from '../../provider/device-tensor.js';
import { barChart } from '../chart.js';
import {
  addModelOptions,
  type ModelOptions,
  openModel,
  refuseStrayModelOptions,
  sessionOptions,
} from '../generation-options.js';
import { batchSize, filePath, folderPath, wholeNumber } from '../option-parsers.js';
import { formatStep } from '../step-table.js';
import {
  abortOnInterrupt,
  formatBytes,
  formatSeconds,
  formatTable,
  InterruptedError,
  Progress,
  tellsOfStop,
} from '../terminal.js';
import { refuseStray } from '../usage.js';

interface Options extends ModelOptions {
  promptTokens: number;
  newTokens: number;
  batch: number[];
  repeats: number;
  compare?: string;
  compareStock?: boolean;
  ops?: boolean;
  json?: boolean;
  svg?: string;
}

/** A measured model, and how it was run. */
type Measured = Benchmark & {
  readonly provider: 'flashllm' | 'stock';
  /** From reading the files to a session that can run. */
  readonly loadSeconds: number;
  /** Of the GPU's memory, what the provider held at most. */
  readonly deviceMemoryBytes?: number;
  readonly step?: StepProfile;
};

/** `flashllm bench`: how fast a model generates, alone or against another. */
export function benchCommand(): Command {
  const command = new Command('bench')
    .description('Measure prefill, time to first token, time per token, tokens/s by batch, memory and bandwidth.')
    .argument('<folder>', 'a folder that flashllm export or rewrite wrote', folderPath)
    .option('--prompt-tokens <number>', 'tokens of each prompt', wholeNumber(1), 64)
    .option('--new-tokens <number>', 'tokens to generate for each', wholeNumber(2), 64)
    .addOption(
      new Option('--batch <list>', 'prompts at once, separated by commas').argParser(parseList).default([1, 8], '1,8'),
    )
    .option('--repeats <number>', 'measurements of each batch', wholeNumber(1), 3)
    .option('--ops', 'also show where the time of a decode step goes, by operator (of the largest batch)')
    .option('--compare <folder>', 'also measure this model, in a process of its own', folderPath)
    .option('--compare-stock', 'run that one without flashllm');
  return addModelOptions(command)
    .option('--json', 'print the measurements as JSON')
    .option('--svg <file>', 'write a chart of tokens/s by batch', filePath)
    .action(run);
}

async function run(folder: string, options: Options, command: Command): Promise<void> {
  refuseStrayModelOptions(command);
  if (options.compare === undefined) refuseStray(command, ['compareStock'], 'goes with --compare only');
  if (options.svg !== undefined) await checkWritable(options.svg);
  // Before minutes of measuring another model.
  if (!options.stock) requireRuntime();
  const { signal, release } = abortOnInterrupt();
  try {
    const models: Measured[] = [];
    if (options.compare === undefined) models.push(await measure(folder, options, signal));
    else {
      // Each in a process of its own: memory is that of one model, and neither finds the caches of the other.
      models.push(await measureApart(options.compare, options, options.stock || options.compareStock || false, signal));
      models.push(await measureApart(folder, options, options.stock ?? false, signal));
    }
    process.stdout.write(options.json ? `${JSON.stringify({ models }, undefined, 2)}\n` : `${format(models)}\n`);
    // Last: what was measured is not lost with a file that cannot be written.
    if (options.svg !== undefined) await writeFile(options.svg, chart(models));
  } finally {
    release();
  }
}

/** Finds out before minutes of measuring whether the chart will have a place. */
async function checkWritable(path: string): Promise<void> {
  try {
    const found = await stat(path).catch(() => undefined);
    if (found?.isDirectory()) throw new Error(`${path} is a folder`);
    // One that is there need not lie in a folder of ours: /dev/stdout.
    await access(found ? path : dirname(resolve(path)), constants.W_OK);
  } catch (error) {
    throw new Error(`cannot write the chart: ${(error as Error).message}; name a file in a folder that exists`);
  }
}

async function measure(folder: string, options: Options, signal: AbortSignal): Promise<Measured> {
  const measured = await measureSpeed(folder, options, signal);
  // In a session of its own, after the other: a profile slows runs down.
  return options.ops ? { ...measured, step: await profile(folder, options, signal) } : measured;
}

async function measureSpeed(folder: string, options: Options, signal: AbortSignal): Promise<Measured> {
  const { promptTokens, newTokens, batch: batches, repeats } = options;
  const { root } = await requireModel(folder);
  const config = await readGeneratorConfig(root);
  if (promptTokens + newTokens > config.maxPositions)
    throw new Error(
      `--prompt-tokens ${promptTokens} and --new-tokens ${newTokens} are more than the ${config.maxPositions} tokens that the model takes`,
    );
  const scheduling = { maxBatch: Math.max(...batches) };
  const tokenizer = await tokenizerOrNumbers(root);
  const started = performance.now();
  const model = await openModel(folder, options, scheduling, tokenizer);
  const loadSeconds = (performance.now() - started) / 1000;
  const bar = new Progress('bench', 1, (count) => `${(100 * count).toFixed(0)} %`);
  try {
    const onProgress = (done: number, total: number) => bar.update(done / total);
    const settings = { promptTokens, newTokens, batches, repeats, signal, onProgress };
    const measured = await measureGeneration(folder, model, settings);
    const device = computesOnDevice(model.session, sessionOptions(options));
    const memory = device === undefined ? {} : { deviceMemoryBytes: deviceUse(device).maxReserved };
    return { ...measured, provider: options.stock ? 'stock' : 'flashllm', loadSeconds, ...memory };
  } finally {
    bar.stop();
    await model.session.release();
  }
}

/** Steps that a profile takes the mean of. */
const PROFILED_STEPS = 20;

function profile(folder: string, options: Options, signal: AbortSignal): Promise<StepProfile> {
  const context = options.promptTokens + options.newTokens;
  const step = { batch: Math.max(...options.batch), context, steps: PROFILED_STEPS, signal };
  return profileStep(folder, sessionOptions(options), step);
}

/** The command line that measures one model alone as the options say. */
export function benchArguments(folder: string, options: Options, stock: boolean): string[] {
  const flags = { stock, ops: options.ops, 'compact-weights': options.compactWeights && !stock };
  const args = ['bench', folder, '--json'];
  for (const [flag, given] of Object.entries(flags)) if (given) args.push(`--${flag}`);
  for (const [flag, value] of Object.entries({
    'prompt-tokens': options.promptTokens,
    'new-tokens': options.newTokens,
    batch: options.batch.join(','),
    repeats: options.repeats,
    threads: options.threads,
    ...(stock
      ? {}
      : {
          device: options.device,
          'expected-batch': options.expectedBatch,
          'expanded-megabytes': options.expandedMegabytes,
          'jagged-megabytes': options.jaggedMegabytes,
        }),
  }))
    if (value !== undefined) args.push(`--${flag}`, String(value));
  return args;
}

/** How a process ended that did not do its work; one that a signal ended has no exit code, and left no message. */
export function describeEnd(code: number | null, killer: NodeJS.Signals | null): string {
  return killer === null
    ? `ended with exit code ${code}; its message is above`
    : `was ended by ${killer}${killer === 'SIGKILL' ? ', as a system does that is out of memory' : ''}`;
}

async function measureApart(folder: string, options: Options, stock: boolean, signal: AbortSignal): Promise<Measured> {
  const args = benchArguments(folder, options, stock);
  const child = spawn(process.execPath, [...process.execArgv, process.argv[1] as string, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const stop = () => child.kill();
  signal.addEventListener('abort', stop);
  const [output, [code, killer]] = await Promise.all([readAll(child.stdout), once(child, 'close')]);
  signal.removeEventListener('abort', stop);
  // Both get a Ctrl-C, one of them has said so.
  if (tellsOfStop(code)) InterruptedError.leaves(signal, undefined);
  signal.throwIfAborted();
  if (code !== 0) throw new Error(`the measurement of ${folder} ${describeEnd(code, killer)}`);
  return (JSON.parse(output) as { models: [Measured] }).models[0];
}

function format(models: readonly Measured[]): string {
  const [base] = models as [Measured];
  const rows = models.flatMap((model) =>
    model.speeds.map((speed, i) => [
      model.model,
      model.provider,
      String(speed.batch),
      speed.prefillTokensPerSecond.toFixed(0),
      speed.timeToFirstTokenMs.toFixed(1),
      speed.timePerTokenP50Ms.toFixed(2),
      speed.timePerTokenP95Ms.toFixed(2),
      speed.tokensPerSecond.toFixed(1),
      ...(models.length > 1
        ? [`${(speed.tokensPerSecond / (base.speeds[i]?.tokensPerSecond ?? Number.NaN)).toFixed(2)}×`]
        : []),
      speed.weightGbPerSecond.toFixed(1),
    ]),
  );
  const columns = ['model', 'provider', 'batch', 'prefill tok/s', 'TTFT ms', 'TPOT p50 ms', 'p95 ms', 'tokens/s'];
  if (models.length > 1) columns.push('ratio');
  columns.push('weights GB/s');
  const table = formatTable(
    columns.map((header, i) => ({ header, align: i < 2 ? ('left' as const) : ('right' as const) })),
    rows,
  );
  const memory = models.map(
    (model) =>
      `${model.model}: loaded in ${formatSeconds(model.loadSeconds)}, ${formatBytes(model.weightBytes)} of weights a step, ${formatBytes(model.peakMemoryBytes)} of memory at most` +
      (model.deviceMemoryBytes === undefined ? '' : `, ${formatBytes(model.deviceMemoryBytes)} of the GPU's`),
  );
  const steps = models.flatMap((model) => (model.step ? ['', `${model.model}: ${formatStep(model.step)}`] : []));
  const { promptTokens, newTokens, repeats } = base;
  const settings = `prompts of ${promptTokens} tokens, ${newTokens} generated, ${repeats} repeats`;
  return [table, '', ...memory, settings, ...steps].join('\n');
}

function chart(models: readonly Measured[]): string {
  const groups = (models[0] as Measured).speeds.map(({ batch }) => String(batch));
  const series = models.map(({ model, provider, speeds }) => ({
    name: `${model.split('/').filter(Boolean).at(-1)}, ${provider}`,
    values: speeds.map(({ tokensPerSecond }) => tokensPerSecond),
  }));
  return barChart('Tokens generated a second', 'sequences at once', groups, series);
}

function parseList(text: string): number[] {
  return text.split(',').map(batchSize);
}
