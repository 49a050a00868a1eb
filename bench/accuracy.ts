// Perplexity of the shipped opt-14m, dense and pruned by each method: node dist/bench/accuracy.js [--windows N] [--sequences N] [--write]
// docs/accuracy.md has the table. --sparsities 0.5,0.7 and --methods 'sparsegpt;admm' take fewer rows. Instead of them, --fine-tuned
// measures the shipped model of 80 % zeros, and --variants other settings of one method. --write puts the results into bench/results/, under
// a name with --suffix at its end.
// `alone` is the method by itself; `biases` adds the correction of biases; without a suffix there is the compensation of earlier
// layers as well and, with sparsegpt and admm, refinement: the default.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { formatTable } from '../cli/terminal.js';
import type { PruneSettings } from '../models/pruning/index.js';
import { shippedModel, shippedSparseModel } from '../models/shipped.js';
import { environment } from './environment.js';
import {
  heldOutTexts,
  inDomainKinds,
  type Perplexities,
  perplexitiesOf,
  perplexitiesOfCheckpoint,
  pruneAndMeasure,
  type Texts,
  window,
} from './perplexities.js';

type Settings = Omit<PruneSettings, 'sparsity'>;
interface Row {
  readonly name: string;
  readonly sparsity: number;
  readonly perplexities: Perplexities;
  /** Mean of the linears' relative output errors. */
  readonly relativeError: number;
  readonly pruneSeconds: number;
}

const methods: readonly { name: string; settings: Settings }[] = [
  { name: 'magnitude alone', settings: { method: 'magnitude', biasCorrection: false, compensation: false } },
  { name: 'magnitude, biases', settings: { method: 'magnitude', compensation: false } },
  { name: 'magnitude', settings: { method: 'magnitude' } },
  { name: 'wanda, biases', settings: { method: 'wanda', compensation: false } },
  { name: 'wanda', settings: { method: 'wanda' } },
  { name: 'sparsegpt, biases', settings: { method: 'sparsegpt', compensation: false, refinement: 0 } },
  { name: 'sparsegpt', settings: { method: 'sparsegpt' } },
  { name: 'admm, biases', settings: { method: 'admm', compensation: false } },
  { name: 'admm', settings: { method: 'admm' } },
];

/** What could make 50 % cost less; `sequences` and `sparsity` where they are not the default's. */
const variants: readonly { name: string; sequences?: number; sparsity?: number; settings: Settings }[] = [
  { name: 'sparsegpt', settings: {} },
  { name: 'twice the text', sequences: 128, settings: {} },
  { name: 'not refined', settings: { refinement: 0 } },
  { name: 'refined by 50 steps', settings: { refinement: 50 } },
  {
    name: 'twice the text, damping 0.1, refined by 50 steps',
    sequences: 128,
    settings: { damping: 0.1, refinement: 50 },
  },
  { name: 'damping 0.001', settings: { damping: 0.001 } },
  { name: 'damping 0.1', settings: { damping: 0.1 } },
  { name: 'blocks of 32 columns', settings: { blockColumns: 32 } },
  {
    name: 'attention 40 %, feed-forward 55 %',
    sparsity: 0.55,
    settings: { layerSparsity: [{ pattern: '*.self_attn.*', sparsity: 0.4 }] },
  },
  {
    name: 'attention 60 %, feed-forward 45 %',
    sparsity: 0.45,
    settings: { layerSparsity: [{ pattern: '*.self_attn.*', sparsity: 0.6 }] },
  },
  {
    name: 'first layer 30 %, others 54 %',
    sparsity: 0.54,
    settings: { layerSparsity: [{ pattern: 'layers.0.*', sparsity: 0.3 }] },
  },
  {
    name: 'last layer 30 %, others 54 %',
    sparsity: 0.54,
    settings: { layerSparsity: [{ pattern: 'layers.5.*', sparsity: 0.3 }] },
  },
  { name: 'admm', settings: { method: 'admm' } },
  {
    name: 'admm, 100 iterations, 50 of refinement',
    settings: { method: 'admm', iterations: 100, refinement: 50 },
  },
];

const { values } = parseArgs({
  options: {
    windows: { type: 'string', default: '16' },
    sequences: { type: 'string', default: '64' },
    sparsities: { type: 'string', default: '0.5,0.6,0.7,0.8' },
    methods: { type: 'string', default: '' },
    'fine-tuned': { type: 'boolean', default: false },
    variants: { type: 'boolean', default: false },
    write: { type: 'boolean', default: false },
    suffix: { type: 'string', default: '' },
  },
});
const windows = Number(values.windows);
const sequences = Number(values.sequences);

const texts = await heldOutTexts();
const textsAndKinds = { ...texts, ...(await inDomainKinds()) };
if (values['fine-tuned']) await measureFineTuned(textsAndKinds);
else if (values.variants) await measureVariants(textsAndKinds);
else await measureMethods(texts);

/** The table of the methods. */
async function measureMethods(texts: Texts): Promise<void> {
  const dense = await perplexitiesOfCheckpoint(shippedModel(), texts, windows);
  const rows: Row[] = [];
  for (const sparsity of values.sparsities.split(',').map(Number)) {
    for (const { name, settings } of methods) {
      if (!chosen(name)) continue;
      const measured = await pruneAndMeasure({ ...settings, sparsity }, sequences, texts, windows);
      note(rows, { name, sparsity, ...measured });
    }
  }
  print(dense, rows);
  await write('opt-14m-accuracy', { model: 'opt-14m', window, windows, sequences, dense, rows: rows.map(flat) });
}

/** Whether --methods leaves a row in. */
function chosen(name: string): boolean {
  return values.methods === '' || values.methods.split(';').includes(name);
}

/** Other settings at 50 %. */
async function measureVariants(texts: Texts): Promise<void> {
  const dense = await perplexitiesOfCheckpoint(shippedModel(), texts, windows);
  const rows: Row[] = [];
  for (const { name, settings, sparsity = 0.5, sequences: own = sequences } of variants) {
    if (!chosen(name)) continue;
    const measured = await pruneAndMeasure({ ...settings, sparsity }, own, texts, windows);
    note(rows, { name, sparsity: 0.5, ...measured });
  }
  print(dense, rows);
  await write('opt-14m-variants', { model: 'opt-14m', window, windows, sequences, dense, rows: rows.map(flat) });
}

/** The shipped sparse model. */
async function measureFineTuned(texts: Texts): Promise<void> {
  const dense = await perplexitiesOfCheckpoint(shippedModel(), texts, windows);
  const fineTuned = await perplexitiesOf(shippedSparseModel(), texts, windows);
  const training: unknown = JSON.parse(await readFile(join(shippedSparseModel(), 'finetune.json'), 'utf8'));
  for (const [name, perplexity] of Object.entries(fineTuned))
    process.stdout.write(`${name}: dense ${dense[name]?.toFixed(2)}, fine-tuned ${perplexity.toFixed(2)}\n`);
  await write('opt-14m-80', { model: 'opt-14m-80', window, windows, dense, fineTuned, training });
}

function note(rows: Row[], row: Row): void {
  rows.push(row);
  process.stderr.write(`${JSON.stringify(flat(row))}\n`);
}

/** As result files have it. */
function flat({ name, sparsity, perplexities, relativeError, pruneSeconds }: Row): Record<string, unknown> {
  return { method: name, sparsity, ...perplexities, relativeError, pruneSeconds };
}

async function write(name: string, result: Record<string, unknown>): Promise<void> {
  if (!values.write) return;
  const measured = environment();
  const file = `bench/results/${measured.date}-cpu-${name}${values.suffix}.json`;
  await writeFile(file, `${JSON.stringify({ environment: measured, ...result }, undefined, 2)}\n`);
}

function print(dense: Perplexities, rows: readonly Row[]): void {
  const texts = Object.keys(dense);
  const cell = (value: number, reference: number) =>
    `${value.toFixed(2)} (${(100 * (value / reference - 1)).toFixed(1)} %)`;
  const columns = ['', ...texts, 'output error', 'time'].map((header, i) => ({
    header,
    align: i === 0 ? ('left' as const) : ('right' as const),
  }));
  const lines = rows.map((row) => [
    `${100 * row.sparsity} % ${row.name}`,
    ...texts.map((name) => cell(row.perplexities[name] as number, dense[name] as number)),
    `${(100 * row.relativeError).toFixed(1)} %`,
    `${row.pruneSeconds.toFixed(0)} s`,
  ]);
  const first = ['dense', ...texts.map((name) => (dense[name] as number).toFixed(2)), '', ''];
  process.stdout.write(`${formatTable(columns, [first, ...lines])}\n`);
}
