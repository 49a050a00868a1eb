// Perplexity of the shipped opt-14m, dense and pruned by each method: node dist/bench/accuracy.js [--windows N] [--sequences N] [--write]
// docs/accuracy.md has the table. --sparsities 0.5,0.7 and --methods 'sparsegpt;admm' take fewer rows. --write puts the results into
// bench/results/. `alone` is the method by itself; `biases` adds the
// correction of biases; without a suffix there is the compensation of earlier layers as well, which is the default.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { formatTable } from '../cli/terminal.js';
import { exportOpt } from '../models/opt/export.js';
import { measurePerplexity } from '../models/perplexity.js';
import { type PruneSettings, pruneOpt } from '../models/pruning/index.js';
import { shippedHeldOutText, shippedInDomainText, shippedModel } from '../models/shipped.js';
import { openTextModel } from '../models/text-model.js';
import { environment } from './environment.js';
import '../provider/index.js';

const window = 1024;
const methods: readonly { name: string; settings: Omit<PruneSettings, 'sparsity'> }[] = [
  { name: 'magnitude alone', settings: { method: 'magnitude', biasCorrection: false, compensation: false } },
  { name: 'magnitude, biases', settings: { method: 'magnitude', compensation: false } },
  { name: 'magnitude', settings: { method: 'magnitude' } },
  { name: 'wanda, biases', settings: { method: 'wanda', compensation: false } },
  { name: 'wanda', settings: { method: 'wanda' } },
  { name: 'sparsegpt, biases', settings: { method: 'sparsegpt', compensation: false } },
  { name: 'sparsegpt', settings: { method: 'sparsegpt' } },
  { name: 'admm, biases', settings: { method: 'admm', compensation: false } },
  { name: 'admm', settings: { method: 'admm' } },
];
const texts = { inDomain: shippedInDomainText(), brown: shippedHeldOutText() };
type Perplexities = Record<keyof typeof texts, number>;

interface Row extends Perplexities {
  readonly method: string;
  readonly sparsity: number;
  readonly pruneSeconds: number;
  /** Mean of the linears' relative output errors. */
  readonly relativeError: number;
}

const { values } = parseArgs({
  options: {
    windows: { type: 'string', default: '16' },
    sequences: { type: 'string', default: '64' },
    sparsities: { type: 'string', default: '0.5,0.6,0.7,0.8' },
    methods: { type: 'string', default: '' },
    write: { type: 'boolean', default: false },
  },
});
const windows = Number(values.windows);
const sequences = Number(values.sequences);
const sparsities = values.sparsities.split(',').map(Number);
const chosen = methods.filter(({ name }) => values.methods === '' || values.methods.split(';').includes(name));

/** Windows that lie evenly spaced in the text, one after the other. */
function pick(ids: readonly number[]): number[] {
  const count = Math.floor(ids.length / window);
  const taken = Math.min(windows, count);
  return Array.from({ length: taken }, (_, i) => Math.floor((i * count) / taken) * window).flatMap((at) =>
    ids.slice(at, at + window),
  );
}

async function perplexities(checkpoint: string, scratch: string): Promise<Perplexities> {
  const folder = join(scratch, 'onnx');
  await exportOpt(checkpoint, { output: folder });
  const model = await openTextModel(folder, { executionProviders: ['flashllm', 'cpu'] });
  const measured: Partial<Perplexities> = {};
  for (const [name, path] of Object.entries(texts)) {
    const ids = pick(model.tokenizer.encode(await readFile(path, 'utf8')));
    measured[name as keyof Perplexities] = (await measurePerplexity(model.decoder, ids, { window })).perplexity;
  }
  await model.session.release();
  await rm(folder, { recursive: true });
  return measured as Perplexities;
}

async function measure(scratch: string, sparsity: number, { name, settings }: (typeof methods)[number]): Promise<Row> {
  const output = join(scratch, 'pruned');
  const { report } = await pruneOpt(shippedModel(), {
    output,
    sparsity,
    ...settings,
    calibration: { sequences, length: window },
  });
  const linears = report.layers.flatMap((layer) => layer.linears);
  const relativeError = linears.reduce((sum, linear) => sum + linear.relativeError, 0) / linears.length;
  const row = {
    method: name,
    sparsity,
    ...(await perplexities(output, scratch)),
    relativeError,
    pruneSeconds: report.total.seconds,
  };
  await rm(output, { recursive: true });
  return row;
}

const scratch = await mkdtemp(join(tmpdir(), 'flashllm-accuracy-'));
try {
  const dense = await perplexities(shippedModel(), scratch);
  const rows: Row[] = [];
  for (const sparsity of sparsities) {
    for (const method of chosen) {
      rows.push(await measure(scratch, sparsity, method));
      process.stderr.write(`${JSON.stringify(rows.at(-1))}\n`);
    }
  }
  print(dense, rows);
  if (values.write) {
    const measured = environment();
    const file = `bench/results/${measured.date}-cpu-opt-14m-accuracy.json`;
    const result = { environment: measured, model: 'opt-14m', window, windows, sequences, dense, rows };
    await writeFile(file, `${JSON.stringify(result, undefined, 2)}\n`);
  }
} finally {
  await rm(scratch, { recursive: true, force: true });
}

function print(dense: Perplexities, rows: readonly Row[]): void {
  const cell = (value: number, reference: number) =>
    `${value.toFixed(2)} (${(100 * (value / reference - 1)).toFixed(1)} %)`;
  const columns = ['zeros', 'method', 'in-domain', 'Brown', 'output error', 'time'].map((header, i) => ({
    header,
    align: i === 1 ? ('left' as const) : ('right' as const),
  }));
  const lines = rows.map((row) => [
    `${100 * row.sparsity} %`,
    row.method,
    cell(row.inDomain, dense.inDomain),
    cell(row.brown, dense.brown),
    `${(100 * row.relativeError).toFixed(1)} %`,
    `${row.pruneSeconds.toFixed(0)} s`,
  ]);
  const first = ['0 %', 'dense', dense.inDomain.toFixed(2), dense.brown.toFixed(2), '', ''];
  process.stdout.write(`${formatTable(columns, [first, ...lines])}\n`);
}
