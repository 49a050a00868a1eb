import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { Command } from 'commander';
import { findModels } from '../../graph-passes/index.js';
import { type VerifyReport, verifyModels } from '../../graph-passes/verify.js';
import { batchSize, filePath, modelPath, numberWithin, wholeNumber } from '../option-parsers.js';
import { type Column, formatTable } from '../terminal.js';
import { refuseStray } from '../usage.js';

interface Options {
  inputs?: string;
  stock?: boolean;
  tolerance?: number;
  batch?: number;
  sequence: number;
  past: number;
  seed: number;
  json?: boolean;
}

/** Longer than what any model takes; where no configuration says what this one does, its inputs are made all the same. */
const MOST_TOKENS = 2 ** 20;

/** `flashllm verify`: two models on the same inputs, compared element by element. Exit code 1 where they differ. */
export function verifyCommand(): Command {
  return new Command('verify')
    .description('Run a model and its rewritten form on the same inputs and compare every output element by element.')
    .argument('<original>', 'an .onnx file or a folder with one; runs in an ordinary CPU session', modelPath)
    .argument('<rewritten>', 'an .onnx file or a folder with one; runs with flashllm', modelPath)
    .option(
      '--inputs <file>',
      'JSON: { "inputs": { "<name>": { "dtype", "shape", "data" } } } (default: random)',
      filePath,
    )
    .option('--stock', 'also run the rewritten model without flashllm')
    .option(
      '--tolerance <share>',
      "largest difference, as a share of an output's largest magnitude",
      numberWithin(0, 1),
    )
    .option(
      '--batch <n>',
      'random inputs: batch (default: 2, or 1 where GroupQueryAttention allows no more)',
      batchSize,
    )
    .option('--sequence <n>', 'random inputs: tokens', wholeNumber(1, MOST_TOKENS), 5)
    .option('--past <n>', 'random inputs: tokens in the past', wholeNumber(0, MOST_TOKENS), 3)
    .option('--seed <n>', 'random inputs: seed', wholeNumber(0), 1)
    .option('--json', 'print the report as JSON; differences that are infinite are the text "Infinity"')
    .addHelpText('after', '\nExit code: 0 if the models agree, 1 if they differ or cannot be compared.')
    .action(run);
}

async function run(original: string, rewritten: string, options: Options, command: Command): Promise<void> {
  if (options.inputs !== undefined)
    refuseStray(command, ['batch', 'sequence', 'past', 'seed'], 'is of random inputs, which --inputs replaces');
  const { batch, sequence, past, seed, inputs, tolerance } = options;
  const models = { original: singleModel(original), rewritten: singleModel(rewritten) };
  if (inputs === undefined) for (const path of Object.values(models)) checkContext(path, past + sequence);
  const report = await verifyModels({
    ...models,
    stock: options.stock ?? false,
    sizes: { ...(batch === undefined ? {} : { batch }), sequence, past, seed },
    ...(inputs === undefined ? {} : { inputs }),
    ...(tolerance === undefined ? {} : { tolerance }),
  });
  if (options.json) process.stdout.write(`${JSON.stringify(report, spellOut, 2)}\n`);
  else process.stdout.write(`${format(report)}\n`);
  process.exitCode = report.ok ? 0 : 1;
}

/** JSON makes null of an infinite difference, which scripts take for 0; as text it is larger than any tolerance, or no number. */
function spellOut(_: string, found: unknown): unknown {
  return typeof found === 'number' && !Number.isFinite(found) ? String(found) : found;
}

function singleModel(path: string): string {
  const { models } = findModels(path);
  const [model] = models;
  if (!model || models.length > 1) {
    throw new Error(
      `${path} holds ${models.length} models; name one: ${models.map(({ relative }) => relative).join(', ')}`,
    );
  }
  return model.path;
}

/** Refuses more tokens than the configuration beside a model allows: positions beyond have no embedding. Without one, nothing is known. */
function checkContext(model: string, tokens: number): void {
  // transformers.js has models in onnx/, below their configuration.
  const folder = dirname(resolve(model));
  const paths = [folder, ...(basename(folder) === 'onnx' ? [dirname(folder)] : [])].map((at) =>
    join(at, 'config.json'),
  );
  const path = paths.find((candidate) => existsSync(candidate));
  const most = path === undefined ? undefined : readContext(path);
  if (most !== undefined && tokens > most)
    throw new Error(
      `--past and --sequence are ${tokens} tokens, expected at most the ${most} that ${model} takes (${path})`,
    );
}

function readContext(path: string): number | undefined {
  try {
    const most = (JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>).max_position_embeddings;
    return typeof most === 'number' ? most : undefined;
  } catch {
    return undefined;
  }
}

const COLUMNS: readonly Column[] = [
  { header: 'output' },
  { header: 'type' },
  { header: 'shape' },
  { header: 'largest', align: 'right' },
  { header: 'difference', align: 'right' },
  { header: 'relative', align: 'right' },
  { header: 'allowed', align: 'right' },
  { header: '' },
];

function format(report: VerifyReport): string {
  const tables = report.runs.map(({ providers, outputs }) => {
    const rows = outputs.map((output) => [
      output.name,
      output.type,
      output.shape.join(' × '),
      output.magnitude.toPrecision(4),
      output.maxAbsolute.toExponential(2),
      output.maxRelative.toExponential(2),
      output.tolerance.toExponential(0),
      output.ok ? 'ok' : `DIFFERS${output.mismatch ? ` (${output.mismatch})` : ''}`,
    ]);
    return `${providers.join(' + ')} against the original\n\n${formatTable(COLUMNS, rows)}`;
  });
  return [...tables, report.ok ? 'the models agree' : 'the models differ'].join('\n\n');
}
