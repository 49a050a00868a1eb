/** `npm run bench:cpu`: SparseMatMul and a whole decoder on the CPU, against ONNX Runtime's own dense MatMul, in one process. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Command, InvalidArgumentError, Option } from 'commander';
import ort from 'onnxruntime-node';
import { formatTable, Progress } from '../cli/terminal.js';
import { rewriteModel } from '../graph-passes/index.js';
import { Decoder, exportRandomOpt, type OptSize, optConfigJson, optSizes } from '../models/index.js';
import '../provider/index.js';
import { writeDenseMatMulModel } from './dense-matmul-model.js';
import { environment } from './environment.js';
import { geometricMean, median } from './statistics.js';

/** `[out_features, in_features]` of OPT-1.3B: QKV, attention output, fc1, fc2. */
const SHAPES = [
  [6144, 2048],
  [2048, 2048],
  [8192, 2048],
  [2048, 8192],
] as const;
/** The packed weights of one run are at least this large, so that they come from memory and not from a cache. */
const LEAST_PACKED_BYTES = 64e6;
const MOST_DENSE_BYTES = 1.2e9;
const TURNS = 4;

interface Options {
  isa: 'auto' | 'avx512' | 'avx2' | 'neon' | 'reference';
  threads: number;
  seconds: number;
  columns: number[];
  sparsities: number[];
  matmul: boolean;
  decode: boolean;
  decodeSize: OptSize;
  output?: string;
}

/** One product, dense and sparse. */
interface MatMulRow {
  outFeatures: number;
  inFeatures: number;
  n: number;
  sparsity: number;
  denseMilliseconds: number;
  sparseMilliseconds: number;
  speedup: number;
}

interface DecodeRow {
  size: string;
  sparsity: number;
  denseTokensPerSecond: number;
  sparseTokensPerSecond: number;
  speedup: number;
}

type Providers = ort.InferenceSession.SessionOptions['executionProviders'];

async function main(options: Options): Promise<void> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'flashllm-bench-'));
  try {
    const matmul = options.matmul ? await benchMatMuls(folder, options) : [];
    const decode = options.decode ? await benchDecode(folder, options) : [];
    const result = {
      what: 'cpu',
      isa: options.isa,
      threads: options.threads,
      environment: environment(),
      matmul,
      decode,
    };
    print(matmul, decode, options);
    if (options.output !== undefined) {
      await mkdir(path.dirname(options.output), { recursive: true });
      await writeFile(options.output, `${JSON.stringify(result, undefined, 1)}\n`);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function benchMatMuls(folder: string, options: Options): Promise<MatMulRow[]> {
  const rows: MatMulRow[] = [];
  const bar = new Progress('products', SHAPES.length * options.sparsities.length, (count) => `${count}`);
  for (const [outFeatures, inFeatures] of SHAPES) {
    for (const sparsity of options.sparsities) {
      bar.update(rows.length / options.columns.length, `${outFeatures}×${inFeatures} at ${sparsity}`);
      rows.push(...(await benchWeight(folder, { outFeatures, inFeatures, sparsity }, options)));
    }
  }
  bar.stop();
  return rows;
}

/** Times one weight for every number of columns; the two sessions take turns, so that both see the same machine. */
async function benchWeight(
  folder: string,
  weight: { outFeatures: number; inFeatures: number; sparsity: number },
  options: Options,
): Promise<MatMulRow[]> {
  const { outFeatures, inFeatures, sparsity } = weight;
  const elements = outFeatures * inFeatures;
  const wanted = LEAST_PACKED_BYTES / (elements * (2 * (1 - sparsity) + 0.125));
  const copies = Math.max(1, Math.min(Math.ceil(wanted), Math.floor(MOST_DENSE_BYTES / (4 * elements))));
  const model = await writeDenseMatMulModel(folder, { ...weight, copies });
  const packed = path.join(folder, 'sparse.onnx');
  await rewriteModel({ input: model, output: packed, minSparsity: 0, portable: false });
  const dense = await open(model, ['cpu'], options);
  const sparse = await open(packed, sparseProviders(options), options);
  try {
    const rows: MatMulRow[] = [];
    for (const n of options.columns) {
      const x = Float32Array.from({ length: n * inFeatures }, (_, i) => Math.sin(i));
      const feeds = { x: new ort.Tensor('float32', x, [n, inFeatures]) };
      const run = (session: ort.InferenceSession) => async () => void (await session.run(feeds));
      const times = await takeTurns([run(dense), run(sparse)], options.seconds);
      const [denseMilliseconds, sparseMilliseconds] = times.map((time) => time / copies) as [number, number];
      rows.push({
        ...weight,
        n,
        denseMilliseconds,
        sparseMilliseconds,
        speedup: denseMilliseconds / sparseMilliseconds,
      });
    }
    return rows;
  } finally {
    await Promise.all([dense.release(), sparse.release()]);
    await Promise.all(
      [model, `${packed}`, `${packed}_data`, path.join(folder, 'dense.onnx_data')].map((file) => rm(file)),
    );
  }
}

/** Decode speed at batch 1 of a random model of OPT's shape, in float32, after a prompt of 32 tokens. */
async function benchDecode(folder: string, options: Options): Promise<DecodeRow[]> {
  const rows: DecodeRow[] = [];
  for (const sparsity of options.sparsities) {
    const denseFolder = path.join(folder, 'dense');
    const random = { sparsity, seed: 1, shareLayers: false };
    const { modelPath } = await exportRandomOpt(optConfigJson(options.decodeSize), random, { output: denseFolder });
    const packed = path.join(folder, 'sparse', 'model.onnx');
    await rewriteModel({ input: modelPath, output: packed });
    const dense = await open(modelPath, ['cpu'], options);
    const sparse = await open(packed, sparseProviders(options), options);
    try {
      const steps = await Promise.all([decodeStep(dense), decodeStep(sparse)]);
      const [slow, fast] = (await takeTurns(steps, 4 * options.seconds)) as [number, number];
      rows.push({
        size: options.decodeSize,
        sparsity,
        denseTokensPerSecond: 1000 / slow,
        sparseTokensPerSecond: 1000 / fast,
        speedup: slow / fast,
      });
    } finally {
      await Promise.all([dense.release(), sparse.release()]);
      await Promise.all([denseFolder, path.dirname(packed)].map((made) => rm(made, { recursive: true })));
    }
  }
  return rows;
}

/** A function that runs one decode step after a prompt of 32 tokens, always the same one: the context does not grow. */
async function decodeStep(session: ort.InferenceSession): Promise<() => Promise<void>> {
  const decoder = new Decoder(session);
  const ids = Array.from({ length: 32 }, (_, i) => 4 + 7 * i);
  const mask = new Array<number>(ids.length).fill(1);
  const { cache } = await decoder.step({ ids: [ids], mask: [mask] });
  return async () => void (await decoder.step({ ids: [[5]], mask: [[...mask, 1]], cache }));
}

/**
 * Median milliseconds of each task; the tasks take turns until each has run for about `seconds`. A turn is several runs: the threads of the
 * other session, which spin for a while after each of its runs, must have gone to sleep before any is timed.
 */
async function takeTurns(tasks: readonly (() => Promise<void>)[], seconds: number): Promise<number[]> {
  const times = tasks.map(() => [] as number[]);
  for (let turn = 0; turn < TURNS; turn += 1) {
    for (const [i, task] of tasks.entries()) {
      await sleep(20);
      await task();
      const end = performance.now() + (seconds * 1000) / TURNS;
      do {
        const before = performance.now();
        await task();
        times[i]?.push(performance.now() - before);
      } while (performance.now() < end);
    }
  }
  return times.map(median);
}

function sparseProviders({ isa, threads }: Options): Providers {
  return [{ name: 'flashllm', isa, threads }, 'cpu'] as Providers;
}

function open(model: string, executionProviders: Providers, { threads }: Options): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(model, {
    executionProviders: executionProviders ?? [],
    intraOpNumThreads: threads,
  });
}

function print(matmul: readonly MatMulRow[], decode: readonly DecodeRow[], options: Options): void {
  const number = (value: number, digits = 2): string => value.toFixed(digits);
  if (matmul.length > 0) {
    const shapes = SHAPES.map(([m, k]) => `${m}×${k}`);
    const rows = options.columns.flatMap((n) =>
      options.sparsities.map((sparsity) => {
        const speedups = matmul.filter((row) => row.n === n && row.sparsity === sparsity).map((row) => row.speedup);
        return [`${n}`, number(sparsity), ...speedups.map((value) => number(value)), number(geometricMean(speedups))];
      }),
    );
    const columns = ['N', 'sparsity', ...shapes, 'geometric mean'].map((header) => ({
      header,
      align: 'right' as const,
    }));
    console.log(
      `\nSpeed-up of SparseMatMul (float16 values) over ONNX Runtime's dense float32 MatMul\n${formatTable(columns, rows)}`,
    );
  }
  if (decode.length > 0) {
    const rows = decode.map((row) => [
      `OPT-${row.size}`,
      number(row.sparsity, 1),
      number(row.denseTokensPerSecond, 1),
      number(row.sparseTokensPerSecond, 1),
      `${number(row.speedup)}×`,
    ]);
    const columns = ['model', 'sparsity', 'dense tokens/s', 'sparse tokens/s', 'speed-up'].map((header) => ({
      header,
      align: 'right' as const,
    }));
    console.log(`\nDecoding at batch 1\n${formatTable(columns, rows)}`);
  }
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError(`expected a number above 0, found '${text}'`);
  return value;
}

function list(text: string): number[] {
  return text.split(',').map(positive);
}

await new Command('bench:cpu')
  .description('SparseMatMul and decoding on the CPU, against ONNX Runtime, in one process.')
  .addOption(
    new Option('--isa <name>', 'instruction set of our kernels')
      .choices(['auto', 'avx512', 'avx2', 'neon', 'reference'])
      .default('auto'),
  )
  .option('--threads <number>', 'threads of either side', positive, os.availableParallelism())
  .option('--seconds <number>', 'seconds a figure takes on either side', positive, 1)
  .option('--columns <numbers>', 'N, the rows of X', list, [1, 8, 64])
  .option('--sparsities <numbers>', 'shares of zeros', list, [0.5, 0.7, 0.8, 0.9])
  .option('--no-matmul', 'leave the single products out')
  .option('--no-decode', 'leave the decoder out')
  .addOption(new Option('--decode-size <size>', 'random OPT model that decodes').choices([...optSizes]).default('350m'))
  .option('-o, --output <file>', 'also write the result as JSON')
  .action(main)
  .parseAsync();
