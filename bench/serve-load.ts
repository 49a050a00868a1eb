/**
 * `npm run bench:serve`: many clients stream from `flashllm serve` on this machine. Fails where a stream fails or the
 * server's memory goes on growing.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { wholeNumber } from '../cli/option-parsers.js';
import { copyCompanions } from '../graph-passes/companions.js';
import { rewriteModel } from '../graph-passes/index.js';
import { percentile } from '../models/benchmark.js';
import { Random } from '../models/generation/random.js';
import { exportOpt, shippedModel } from '../models/index.js';
import { environment } from './environment.js';
import { median } from './statistics.js';
import { streamLoad } from './stream-load.js';

interface Options {
  streams: number;
  seconds: number;
  mostTokens: number;
  sparsity: number;
  output?: string;
}

/** What the server tells of itself at one moment; memory in bytes, seconds as `nodejs_eventloop_lag`. */
interface Sample {
  second: number;
  resident: number;
  heap: number;
  lagP99: number;
  running: number;
  cache: number;
}

/** Memory may grow by so much, as a share, between the first and the last third of the load. */
const MOST_GROWTH = 0.1;
/** More requests than any machine answers: the load ends whatever the clock does. */
const MOST_REQUESTS = 1_000_000;

async function main(options: Options): Promise<void> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'flashllm-load-'));
  let server: ChildProcess | undefined;
  try {
    await makeModel(folder, options.sparsity);
    const started = await serve(path.join(folder, 'opt-14m'), options.streams);
    server = started.server;
    const result = await load(started.url, options);
    print(result);
    if (options.output !== undefined) {
      await mkdir(path.dirname(options.output), { recursive: true });
      await writeFile(options.output, `${JSON.stringify(result, undefined, 1)}\n`);
    }
    process.exitCode = result.failures.length > 0 || result.memory.growth > MOST_GROWTH ? 1 : 0;
  } finally {
    if (server?.exitCode === null) {
      server.kill('SIGTERM');
      await once(server, 'close');
    }
    await rm(folder, { recursive: true });
  }
}

async function makeModel(folder: string, sparsity: number): Promise<void> {
  const dense = path.join(folder, 'dense');
  const { modelPath } = await exportOpt(shippedModel(), { output: dense });
  const sparse = path.join(folder, 'opt-14m');
  const prune = { method: 'magnitude', sparsity, scope: 'layer' } as const;
  await rewriteModel({ input: modelPath, output: path.join(sparse, 'model.onnx'), prune });
  await copyCompanions(dense, sparse);
}

async function serve(folder: string, streams: number): Promise<{ server: ChildProcess; url: string }> {
  const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  const args = ['serve', folder, '--port', '0', '--max-batch', String(streams)];
  const server = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  for await (const line of server.stdout) {
    const url = /http:\/\/127\.0\.0\.1:\d+/.exec(String(line))?.[0];
    if (url) return { server, url };
  }
  throw new Error('flashllm serve ended before it listened; its message is above');
}

async function load(url: string, { streams, seconds, mostTokens, sparsity }: Options) {
  const random = new Random(1);
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  const samples: Sample[] = [];
  const timer = setInterval(() => sample(url, elapsed()).then((taken) => samples.push(taken)), 1000);
  const whole = (most: number) => 1 + Math.floor(random.next() * most);
  const { requests, failures, events, firstToken, gaps } = await streamLoad({
    url,
    streams,
    next: (index) => {
      if (elapsed() > seconds || index >= MOST_REQUESTS) return undefined;
      // Prompts of up to 100 words, of texts that end at their own time.
      const prompt = Array.from({ length: whole(100) }, () => 'word').join(' ');
      return { prompt, max_tokens: whole(mostTokens), temperature: 0.8, seed: index, ignore_eos: true };
    },
  });
  const duration = elapsed();
  clearInterval(timer);
  const idle = await settled(url);
  const third = Math.ceil(samples.length / 3);
  const resident = (part: Sample[]) => median(part.map((one) => one.resident));
  const [first, last] = [resident(samples.slice(third, 2 * third)), resident(samples.slice(2 * third))];
  return {
    what: 'serve-load',
    model: `opt-14m, ${100 * sparsity} % zeros`,
    ...{ streams, seconds: duration, requests, failures },
    tokensPerSecond: events / duration,
    milliseconds: {
      firstToken: quantiles(firstToken),
      interToken: quantiles(gaps),
      eventLoopLagP99: quantiles(samples.map(({ lagP99 }) => 1000 * lagP99)),
    },
    memory: {
      /** Of the resident memory, from the second third of the load to the last. */
      growth: last / first - 1,
      peakBytes: Math.max(...samples.map((one) => one.resident)),
      idle,
      samples: samples.filter((_, i) => i % 10 === 0),
    },
    environment: environment(),
  };
}

async function sample(url: string, second: number): Promise<Sample> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const value = (name: string) => Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm').exec(text)?.[1]);
  return {
    second: Math.round(second),
    resident: value('process_resident_memory_bytes'),
    heap: value('nodejs_heap_size_used_bytes'),
    lagP99: value('nodejs_eventloop_lag_p99_seconds'),
    running: value('flashllm_sequences_running'),
    cache: value('flashllm_cache_bytes'),
  };
}

/** The server a moment after the last stream: nothing runs and no cache is held. */
async function settled(url: string): Promise<Sample> {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const idle = await sample(url, 0);
  if (idle.running !== 0 || idle.cache !== 0)
    throw new Error(`after the load ${idle.running} sequences run and ${idle.cache} bytes of cache are held`);
  return idle;
}

function quantiles(values: readonly number[]): { p50: number; p95: number; p99: number; max: number } {
  const [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1].map((share) => percentile(values, share)) as [
    number,
    number,
    number,
    number,
  ];
  return { p50, p95, p99, max };
}

function print({ streams, seconds, requests, failures, ...result }: Awaited<ReturnType<typeof load>>): void {
  const { firstToken, interToken, eventLoopLagP99 } = result.milliseconds;
  const line = (name: string, { p50, p95, p99, max }: ReturnType<typeof quantiles>) =>
    `${name}: p50 ${p50.toFixed(1)}, p95 ${p95.toFixed(1)}, p99 ${p99.toFixed(1)}, max ${max.toFixed(1)} ms`;
  const lines = [
    `${streams} streams for ${seconds.toFixed(0)} s: ${requests} requests, ${failures.length} failures`,
    `${result.tokensPerSecond.toFixed(0)} tokens/s`,
    line('first token', firstToken),
    line('between tokens', interToken),
    line('event loop lag, p99 of each second', eventLoopLagP99),
    `memory: ${(result.memory.peakBytes / 1e6).toFixed(0)} MB at most, growth ${(100 * result.memory.growth).toFixed(1)} %`,
    ...failures.slice(0, 5),
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
}

await new Command('bench:serve')
  .description('Concurrent streams from flashllm serve on this machine: latency, failures, memory.')
  .option('--streams <number>', 'clients at once', wholeNumber(1), 64)
  .option('--seconds <number>', 'how long new requests are made', wholeNumber(6), 300)
  .option('--most-tokens <number>', 'longest text', wholeNumber(1), 128)
  .option('--sparsity <share>', 'zeros of opt-14m', Number, 0.5)
  .option('-o, --output <file>', 'also write the result as JSON')
  .action(main)
  .parseAsync();
