import { text as readAll } from 'node:stream/consumers';
import { Command } from 'commander';
import type { Generation } from '../../models/index.js';
import { err, out } from '../colors.js';
import {
  addModelOptions,
  addSamplingOptions,
  type ModelOptions,
  openModel,
  refuseStrayModelOptions,
  refuseStraySampling,
  type SamplingFlags,
  samplingSettings,
} from '../generation-options.js';
import { folderPath, repeatable } from '../option-parsers.js';
import { abortOnInterrupt } from '../terminal.js';
import { readTextFile } from '../text-file.js';
import { refuseStray } from '../usage.js';

interface Options extends ModelOptions, SamplingFlags {
  file: string[];
  json?: boolean;
  prompt: boolean;
  stats: boolean;
}

/** One text's times, from the beginning of all, in milliseconds. */
interface Times {
  first: number;
  last: number;
}

/** `flashllm generate`: continues prompts; one as it is made, several in one batch. */
export function generateCommand(): Command {
  const command = new Command('generate')
    .description('Continue prompts with an exported or rewritten model; the text appears as it is made.')
    .argument('<folder>', 'a folder that flashllm export or rewrite wrote', folderPath)
    .argument('[prompts...]', 'beginnings of texts; - reads one from standard input, without its last newline')
    .addOption(repeatable('-f, --file <path>', 'a prompt in a file, without its last newline; may be repeated'));
  return addModelOptions(addSamplingOptions(command))
    .option('--json', 'print texts, tokens and times as JSON when all are done')
    .option('--no-prompt', 'print what is generated only')
    .option('--no-stats', 'print no line about speed (it goes to standard error)')
    .action(run);
}

async function run(folder: string, args: string[], options: Options, command: Command): Promise<void> {
  refuseStrayModelOptions(command);
  refuseStraySampling(command);
  if (!options.json) refuseStray(command, ['logprobs'], 'goes with --json only');
  const settings = samplingSettings(options);
  const prompts = await readPrompts(args, options.file);
  const { signal, release } = abortOnInterrupt();
  // A reader such as head that has seen enough is no error.
  const enough = new AbortController();
  const onPipe = () => enough.abort();
  process.stdout.on('error', onPipe);
  try {
    const maxBatch = Math.max(prompts.length, 1);
    const model = await openModel(folder, { expectedBatch: maxBatch, ...options }, { maxBatch });
    try {
      signal.throwIfAborted();
      const started = performance.now();
      const generations = model.generator.start(prompts, {
        ...settings,
        signal: AbortSignal.any([signal, enough.signal]),
      });
      const times = generations.map((generation) => watch(generation, started));
      if (options.json)
        await printJson({ model: folder, provider: options.stock ? 'stock' : 'flashllm' }, prompts, generations, times);
      else await print(prompts, generations, options);
      if (options.stats && !options.json) process.stderr.write(`${await summary(generations, times)}\n`);
    } finally {
      await model.session.release();
    }
  } catch (error) {
    if (!enough.signal.aborted) throw error;
  } finally {
    release();
    process.stdout.off('error', onPipe);
  }
}

async function readPrompts(args: readonly string[], files: readonly string[]): Promise<string[]> {
  const named = args.length > 0 || files.length > 0;
  if (!named && process.stdin.isTTY)
    throw new Error(
      "no prompt: give one, name a file with --file, or pipe one in (echo 'Call me' | flashllm generate …)",
    );
  let input: Promise<string> | undefined;
  const stdin = () => {
    input ??= readAll(process.stdin).then(withoutNewline);
    return input;
  };
  const given = named ? args : ['-'];
  return [
    ...(await Promise.all(given.map((arg) => (arg === '-' ? stdin() : arg)))),
    ...(await Promise.all(files.map((file) => readTextFile(file, 'the prompt').then(withoutNewline)))),
  ];
}

/** The newline that echo and editors end a text with is not meant: with it the model would go on otherwise than from the same words as an argument. */
function withoutNewline(text: string): string {
  return text.replace(/\r?\n$/, '');
}

/** Times are taken as tokens are made, not as they are printed: texts of a batch wait for each other on the terminal. */
function watch(generation: Generation, started: number): Times {
  const times = { first: Number.NaN, last: Number.NaN };
  generation.onPiece(() => {
    times.last = performance.now() - started;
    if (Number.isNaN(times.first)) times.first = times.last;
  });
  return times;
}

async function print(prompts: readonly string[], generations: readonly Generation[], options: Options): Promise<void> {
  for (const [i, generation] of generations.entries()) {
    if (i > 0) process.stdout.write('\n');
    if (options.prompt) process.stdout.write(out.bold(prompts[i] as string));
    for await (const { text } of generation) process.stdout.write(text);
    process.stdout.write('\n');
  }
}

async function printJson(
  head: { model: string; provider: 'flashllm' | 'stock' },
  prompts: readonly string[],
  generations: readonly Generation[],
  times: readonly Times[],
): Promise<void> {
  const results = await Promise.all(generations.map(({ result }) => result));
  const texts = results.map((result, i) => {
    const tokens = result.tokenIds.length - result.promptTokens;
    const { first, last } = times[i] as Times;
    return {
      prompt: prompts[i],
      ...result,
      newTokens: tokens,
      timeToFirstTokenMs: tokens > 0 ? first : null,
      tokensPerSecond: tokens > 1 ? (1000 * (tokens - 1)) / (last - first) : null,
    };
  });
  process.stdout.write(`${JSON.stringify({ ...head, texts }, undefined, 2)}\n`);
}

async function summary(generations: readonly Generation[], times: readonly Times[]): Promise<string> {
  const results = await Promise.all(generations.map(({ result }) => result));
  const tokens = results.map((result) => result.tokenIds.length - result.promptTokens);
  const all = tokens.reduce((sum, count) => sum + count, 0);
  // A text that had no room for a token has no times.
  const made = times.filter((_, i) => (tokens[i] as number) > 0);
  const [first, last] = [Math.min(...made.map((t) => t.first)), Math.max(...made.map((t) => t.last))];
  const later = all - made.length;
  const speed = later > 0 ? `, ${((1000 * later) / (last - first)).toFixed(1)} tokens/s` : '';
  return err.dim(`${all} tokens${speed}${all > 0 ? `, the first after ${first.toFixed(0)} ms` : ''}`);
}
