import { readFile, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { inspectModel, type RewriteReport, rewriteFolder } from '../../graph-passes/index.js';
import { exportOpt } from '../../models/opt/export.js';
import { measurePerplexity } from '../../models/perplexity.js';
import { shippedHeldOutText, shippedModel, shippedSparseModel } from '../../models/shipped.js';
import type { TextModel } from '../../models/text-model.js';
import { requireRuntime } from '../../provider/backend.js';
import { out } from '../colors.js';
import { addSessionOptions, type ModelOptions, openModel } from '../generation-options.js';
import { folderPath, shareBelowOne, wholeNumber } from '../option-parsers.js';
import { withTemporaryFolder } from '../temporary-folder.js';
import { abortOnInterrupt, formatBytes, formatSeconds, formatTable, Progress } from '../terminal.js';

interface Options extends Pick<ModelOptions, 'threads' | 'device'> {
  output?: string;
  model?: string;
  prompt: string;
  tokens: number;
  sparsity?: number;
  evalTokens: number;
  json?: boolean;
}

/** One side of the comparison. */
interface Measured {
  readonly fileBytes: number;
  readonly weightBytes: number;
  readonly tokensPerSecond: number;
  readonly perplexity: number;
  /** Of the held-out text, fewer than asked for where it has no more. */
  readonly evalTokens: number;
  readonly text: string;
}

// The likeliest token each time makes a model of this size repeat itself; the seed makes the text the same each time.
const sampling = { temperature: 0.7, topP: 0.9, seed: 1 };

/** The sparse side. */
interface Sparse {
  readonly folder: string;
  readonly fileBytes: number;
  /** Of the linears. */
  readonly weightBytes: number;
  /** Of those that are packed. */
  readonly sparsity: number;
}

/** `flashllm demo`: the whole way from a checkpoint to text, dense against sparse. */
export function demoCommand(): Command {
  const command = new Command('demo')
    .description(
      'Export the shipped opt-14m, generate text with it and with its fine-tuned form of 80 % zeros in ordinary sessions, compare both. With --sparsity: prune and rewrite it here, by magnitude.',
    )
    .option(
      '-o, --output <folder>',
      'keep what is made here, in dense/ and sparse/ (default: a temporary folder)',
      folderPath,
    )
    .option('--model <hf-folder>', 'another Hugging Face OPT folder; pruned and rewritten here', folderPath)
    .option('--prompt <text>', 'beginning of the text', 'The state of our Union is')
    .option('--tokens <number>', 'tokens to generate', wholeNumber(2), 96)
    .option('--sparsity <fraction>', 'prune by magnitude in each layer (default with --model: 0.5)', shareBelowOne)
    .option('--eval-tokens <number>', 'tokens of held-out text to measure perplexity on', wholeNumber(2), 8192);
  return addSessionOptions(command).option('--json', 'print the measurements as JSON').action(run);
}

async function run(options: Options): Promise<void> {
  requireRuntime();
  const { signal, release } = abortOnInterrupt();
  try {
    if (options.output !== undefined) await demo(options, resolve(options.output), signal);
    else await withTemporaryFolder('flashllm-demo-', (folder) => demo(options, folder, signal));
  } finally {
    release();
  }
}

async function demo(options: Options, folder: string, signal: AbortSignal): Promise<void> {
  const say = (text: string) => options.json || process.stdout.write(`${text}\n`);
  const [denseFolder, sparseFolder] = [join(folder, 'dense'), join(folder, 'sparse')];

  const input = options.model ?? shippedModel();
  const exported = await timed(() => exportOpt(input, { output: denseFolder, signal }));
  const dense = exported.value;
  say(
    `${out.bold('export')}   ${input} to ONNX: ${formatBytes(dense.dataBytes)} of weights in ${formatSeconds(exported.seconds)}`,
  );

  const finetuned = options.model === undefined && options.sparsity === undefined;
  const sparse = finetuned
    ? await openShipped(say)
    : await pruneHere(dense.modelPath, sparseFolder, options.sparsity ?? 0.5, signal, say);
  const { bytesBefore } = await inspectModel({ input: dense.modelPath, signal });
  const measure = (path: string, stock: boolean, sizes: Pick<Measured, 'fileBytes' | 'weightBytes'>, show: boolean) =>
    measureModel(path, stock, sizes, options, signal, show && !options.json);
  const denseResult = await measure(
    denseFolder,
    true,
    { fileBytes: dense.modelBytes + dense.dataBytes, weightBytes: bytesBefore },
    false,
  );
  say(`${out.bold('generate')} with executionProviders: ['flashllm', 'cpu']\n`);
  const sparseResult = await measure(
    sparse.folder,
    false,
    { fileBytes: sparse.fileBytes, weightBytes: sparse.weightBytes },
    true,
  );

  if (options.json)
    process.stdout.write(`${JSON.stringify({ dense: denseResult, sparse: sparseResult }, undefined, 2)}\n`);
  else process.stdout.write(`\n${comparison(denseResult, sparseResult, sparse.sparsity)}\n`);
  if (options.output !== undefined) say(`\nThe models are ${denseFolder} and ${sparse.folder}.`);
}

/** The model that ships sparse. */
async function openShipped(say: (text: string) => void): Promise<Sparse> {
  const folder = shippedSparseModel();
  const report = await inspectModel({ input: join(folder, 'model.onnx') });
  const packed = report.layers.filter((layer) => layer.decision === 'sparse');
  const sizes = packed.map(({ outFeatures = 0, inFeatures = 0 }) => outFeatures * inFeatures);
  const weights = sizes.reduce((sum, size) => sum + size, 0);
  const sparsity = packed.reduce((sum, layer, i) => sum + (layer.sparsity ?? 0) * (sizes[i] ?? 0), 0) / weights;
  const files = await Promise.all(['model.onnx', 'model.onnx_data'].map((name) => stat(join(folder, name))));
  say(
    `${out.bold('sparse')}   ${folder}: ${packed.length} of ${report.layers.length} linears have ${percent(sparsity)} zeros together, fine-tuned and packed`,
  );
  return {
    folder,
    fileBytes: files.reduce((sum, file) => sum + file.size, 0),
    weightBytes: report.bytesAfter,
    sparsity,
  };
}

async function pruneHere(
  input: string,
  output: string,
  sparsity: number,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Sparse> {
  const rewritten = await timed(async () => {
    const prune = { method: 'magnitude', sparsity, scope: 'layer' } as const;
    const [report] = await rewriteFolder({ input, output, prune, signal });
    return report as RewriteReport;
  });
  const report = rewritten.value;
  const layers = report.layers.filter((layer) => layer.decision === 'sparse').length;
  say(
    `${out.bold('rewrite')}  ${layers} of ${report.layers.length} linears pruned to ${percent(sparsity)} zeros and packed in ${formatSeconds(rewritten.seconds)}`,
  );
  const fileBytes = report.output.modelBytes + report.output.dataBytes;
  return { folder: output, fileBytes, weightBytes: report.bytesAfter, sparsity };
}

async function measureModel(
  folder: string,
  stock: boolean,
  sizes: Pick<Measured, 'fileBytes' | 'weightBytes'>,
  options: Options,
  signal: AbortSignal,
  show: boolean,
): Promise<Measured> {
  const model = await openModel(folder, { ...options, stock });
  try {
    if (show) process.stdout.write(out.bold(options.prompt));
    const first = await generate(model, options, signal, show ? (piece) => process.stdout.write(piece) : () => {});
    if (show) process.stdout.write('\n');
    // The first run warms caches and threads up; the best of the next shows the speed, whatever else the machine does.
    const speeds: number[] = [];
    for (let i = 0; i < 3; i++) speeds.push((await generate(model, options, signal, () => {})).tokensPerSecond);
    const ids = model.tokenizer.encode(await readFile(shippedHeldOutText(), 'utf8')).slice(0, options.evalTokens);
    const bar = new Progress('perplexity', ids.length, (count) => `${count} tokens`);
    const { perplexity } = await measurePerplexity(model.decoder, ids, {
      signal,
      onProgress: (done) => bar.update(done),
    }).finally(() => bar.stop());
    return {
      ...sizes,
      ...{ tokensPerSecond: Math.max(...speeds), perplexity, evalTokens: ids.length, text: first.text },
    };
  } finally {
    await model.session.release();
  }
}

/** Generates once. The speed is that of decoding: the first token, which waits for the prompt, starts the clock. */
async function generate(
  { generator }: TextModel,
  options: Options,
  signal: AbortSignal,
  onText: (text: string) => void,
): Promise<{ text: string; tokensPerSecond: number }> {
  let started = 0;
  let tokens = 0;
  let text = '';
  for await (const piece of generator.stream(options.prompt, {
    maxNewTokens: options.tokens,
    stopTokenIds: [],
    ...sampling,
    signal,
  })) {
    if (tokens++ === 0) started = performance.now();
    text += piece.text;
    onText(piece.text);
  }
  return { text, tokensPerSecond: (1000 * (tokens - 1)) / (performance.now() - started) };
}

function comparison(dense: Measured, sparse: Measured, sparsity: number): string {
  const row = (name: string, pick: (side: Measured) => number, format: (value: number) => string) => [
    name,
    format(pick(dense)),
    format(pick(sparse)),
    `${(pick(sparse) / pick(dense)).toFixed(2)}×`,
  ];
  return formatTable(
    [
      { header: '' },
      { header: 'dense, cpu', align: 'right' },
      { header: `${percent(sparsity)} sparse, flashllm`, align: 'right' },
      { header: 'ratio', align: 'right' },
    ],
    [
      row('files', (side) => side.fileBytes, formatBytes),
      row('weights of the linears', (side) => side.weightBytes, formatBytes),
      row(
        'tokens/s, batch 1',
        (side) => side.tokensPerSecond,
        (value) => value.toFixed(0),
      ),
      row(
        `perplexity, ${dense.evalTokens} held-out tokens`,
        (side) => side.perplexity,
        (value) => value.toFixed(1),
      ),
    ],
  );
}

async function timed<T>(work: () => Promise<T>): Promise<{ value: T; seconds: number }> {
  const started = performance.now();
  return { value: await work(), seconds: (performance.now() - started) / 1000 };
}

function percent(fraction: number): string {
  return `${Number((100 * fraction).toFixed(1))} %`;
}
