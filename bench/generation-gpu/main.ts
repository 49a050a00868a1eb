/**
 * `npm run bench:gpu:generation`: tokens a second of a whole generation – prompts in, the last token out – on a GPU, through this
 * package's generator, through dense torch with CUDA graphs and through transformers' `generate` (baselines.py), one after
 * the other in one run. Weights are random. Our side counts all that it does: scheduling, sampling, text, events.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { Command } from 'commander';
import { openModel } from '../../cli/generation-options.js';
import { wholeNumber } from '../../cli/option-parsers.js';
import { Random } from '../../models/generation/random.js';
import type { TextModel } from '../../models/index.js';
import { tokenizerOrNumbers } from '../../models/number-tokenizer.js';
import { readOptConfig } from '../../models/opt/config.js';
import { doctorFacts } from '../../provider/index.js';
import { packageRoot } from '../../provider/library.js';
import { environment } from '../environment.js';
import { mainThreadTime } from '../main-thread.js';
import { median } from '../statistics.js';

interface Options {
  size: string;
  sparsity: string;
  batch: number;
  promptTokens: number;
  newTokens: number;
  repeats: number;
  folder?: string;
  python: string;
  commit?: string;
  output?: string;
}

/** A side of the comparison. */
interface Row {
  side: string;
  /** Median seconds of a generation. */
  seconds: number;
  /** Of all sequences together, the time for the prompts included. */
  tokensPerSecond: number;
  all: number[];
  /** Milliseconds until every sequence has its first token, and between two tokens after that. */
  firstToken?: number;
  tokenGap?: number;
  /** The main thread's processor time, as a share of the time. */
  mainThreadShare?: number;
  loadSeconds?: number;
  gpuBytes?: number;
}

const root = packageRoot();

async function main(options: Options): Promise<void> {
  const [gpu] = doctorFacts().cuda?.devices ?? [];
  if (!gpu) throw new Error('no GPU was found; flashllm doctor tells why');
  const folder = options.folder ?? path.join(os.tmpdir(), `flashllm-random-${options.size}-${options.sparsity}`);
  if (!existsSync(path.join(folder, 'model.onnx'))) makeModel(folder, options);
  const rows = [await ours(folder, options)];
  report(rows[0] as Row);
  for (const row of baselines(options)) {
    rows.push(row);
    report(row, (rows[0] as Row).tokensPerSecond);
  }
  const { size, sparsity, batch, promptTokens, newTokens, repeats } = options;
  const result = {
    what: 'generation-gpu',
    gpu: gpu.name,
    ...{ size, sparsity: Number(sparsity), batch, promptTokens, newTokens, repeats },
    environment: { ...environment(), ...(options.commit === undefined ? {} : { commit: options.commit }) },
    rows,
  };
  if (options.output === undefined) return;
  await mkdir(path.dirname(options.output), { recursive: true });
  await writeFile(options.output, `${JSON.stringify(result, undefined, 1)}\n`);
}

/** Layers share their bytes on the disk, but not on the GPU. */
function makeModel(folder: string, { size, sparsity }: Options): void {
  const dense = `${folder}-dense`;
  flashllm('export', '--random', size, '--share-layers', '--sparsity', sparsity, '--dtype', 'float16', '-o', dense);
  flashllm('rewrite', dense, '-o', folder);
}

function flashllm(...args: string[]): void {
  const done = spawnSync(process.execPath, [path.join(root, 'dist', 'cli', 'main.js'), ...args], { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(`flashllm ${args.join(' ')} failed: ${done.stderr}`);
}

async function ours(folder: string, options: Options): Promise<Row> {
  const { batch, promptTokens, repeats } = options;
  const { vocabSize } = await readOptConfig(folder);
  const before = performance.now();
  const scheduling = { maxBatch: batch, prefillTokens: batch * promptTokens };
  // As who always has so many texts at once would say.
  const session = { device: 'cuda', expectedBatch: batch } as const;
  const model = await openModel(folder, session, scheduling, await tokenizerOrNumbers(folder));
  const loadSeconds = (performance.now() - before) / 1000;
  const random = new Random(batch);
  const prompts = Array.from({ length: batch }, () =>
    Array.from({ length: promptTokens }, () => Math.floor(random.next() * vocabSize)),
  );
  const runs: Generation[] = [];
  for (let i = 0; i <= repeats; i++) runs.push(await generate(model, prompts, options.newTokens));
  await model.session.release();
  // The first warms everything up.
  const counted = runs.slice(1);
  const middle = (key: keyof Generation) => median(counted.map((run) => run[key]));
  return {
    side: 'flashllm',
    seconds: middle('seconds'),
    tokensPerSecond: (batch * options.newTokens) / middle('seconds'),
    all: counted.map(({ seconds }) => seconds),
    firstToken: middle('firstToken'),
    tokenGap: middle('tokenGap'),
    mainThreadShare: middle('mainThreadShare'),
    loadSeconds,
  };
}

interface Generation {
  seconds: number;
  firstToken: number;
  tokenGap: number;
  mainThreadShare: number;
}

async function generate({ generator }: TextModel, prompts: number[][], newTokens: number): Promise<Generation> {
  const before = mainThreadTime();
  const started = performance.now();
  const generations = generator.start(prompts, { maxNewTokens: newTokens, stopTokenIds: [] });
  let tokens = 0;
  let firstToken = 0;
  for (const generation of generations)
    generation.onPiece(() => {
      if (++tokens === prompts.length) firstToken = performance.now() - started;
    });
  await Promise.all(generations.map(({ result }) => result));
  const took = performance.now() - started;
  const mainThreadShare = (mainThreadTime() - before) / took;
  if (tokens !== prompts.length * newTokens) throw new Error(`${tokens} tokens were made`);
  await generator.scheduler.idle();
  return { seconds: took / 1000, firstToken, tokenGap: (took - firstToken) / (newTokens - 1), mainThreadShare };
}

/** Runs baselines.py, whose memory is its own: ours is given back by then. */
function baselines({ size, batch, promptTokens, newTokens, repeats, python }: Options): Row[] {
  const numbers = { batch, 'prompt-tokens': promptTokens, 'new-tokens': newTokens, repeats };
  const args = Object.entries(numbers).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const script = path.join(root, 'bench', 'generation-gpu', 'baselines.py');
  const done = spawnSync(python, [script, '--size', size, ...args], { encoding: 'utf8', maxBuffer: 2 ** 26 });
  if (done.status !== 0)
    process.stderr.write(`baselines.py ended with ${done.status ?? done.signal}:\n${done.stderr}\n`);
  return (done.stdout ?? '').split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line) as Row] : []));
}

function report(row: Row, against?: number): void {
  const rest = [
    against === undefined ? undefined : `flashllm makes ${(against / row.tokensPerSecond).toFixed(2)} times as many`,
    row.tokenGap && `first token ${row.firstToken?.toFixed(1)} ms, then ${row.tokenGap.toFixed(3)} ms`,
    row.mainThreadShare && `main thread ${(100 * row.mainThreadShare).toFixed(1)} %`,
    row.loadSeconds && `loaded in ${row.loadSeconds.toFixed(1)} s`,
  ].filter(Boolean);
  process.stdout.write(`${row.side}: ${row.tokensPerSecond.toFixed(0)} tokens/s; ${rest.join('; ')}\n`);
}

await new Command('bench:gpu:generation')
  .description('Generation on a GPU against dense torch and transformers, in one run.')
  .option('--size <name>', 'of the random model', '13b')
  .option('--sparsity <fraction>', 'zeros in its linears', '0.8')
  .option(
    '--folder <path>',
    'the model, made there if it is not; default: one for size and sparsity among temporary files',
  )
  .option('--batch <number>', 'prompts at once', wholeNumber(1), 16)
  .option('--prompt-tokens <number>', 'tokens of each prompt', wholeNumber(1), 64)
  .option('--new-tokens <number>', 'tokens to generate for each', wholeNumber(2), 256)
  .option(
    '--repeats <number>',
    'measurements of each (one of transformers), after one that is not counted',
    wholeNumber(1),
    3,
  )
  .option('--python <path>', 'with torch and transformers', 'python3')
  .option('--commit <hash>', 'what is measured, where there is no git to tell')
  .option('-o, --output <file>', 'also write the result as JSON')
  .action(main)
  .parseAsync();
