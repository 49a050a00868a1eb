// Perplexities of opt-14m on held-out texts, as all benchmarks of pruning measure them: windows of 1,024 tokens, evenly spaced in a text.
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { exportOpt } from '../models/opt/export.js';
import { measurePerplexity } from '../models/perplexity.js';
import { type PruneSettings, pruneOpt } from '../models/pruning/index.js';
import { shippedHeldOutText, shippedInDomainText, shippedModel } from '../models/shipped.js';
import { openTextModel } from '../models/text-model.js';
import '../provider/index.js';

export const window = 1024;

/** By name. */
export type Texts = Readonly<Record<string, string>>;
export type Perplexities = Record<string, number>;

/** What calibration and, of these, Brown not even training has seen. */
export async function heldOutTexts(): Promise<Texts> {
  return {
    inDomain: await readFile(shippedInDomainText(), 'utf8'),
    brown: await readFile(shippedHeldOutText(), 'utf8'),
  };
}

/** The in-domain text by kind: it has addresses first, then chapters, then pages (models/data/README.md). */
export async function inDomainKinds(): Promise<Texts> {
  const text = await readFile(shippedInDomainText(), 'utf8');
  const chapters = text.indexOf('CHAPTER 4. The Counterpane.');
  const pages = text.indexOf('.. highlight:: c');
  return { addresses: text.slice(0, chapters), mobyDick: text.slice(chapters, pages), python: text.slice(pages) };
}

/** A pruned opt-14m, and what pruning it said. */
export async function pruneAndMeasure(
  settings: PruneSettings,
  sequences: number,
  texts: Texts,
  windows: number,
): Promise<{ perplexities: Perplexities; relativeError: number; pruneSeconds: number }> {
  const scratch = await mkdtemp(join(tmpdir(), 'flashllm-accuracy-'));
  try {
    const output = join(scratch, 'pruned');
    const { report } = await pruneOpt(shippedModel(), {
      output,
      ...settings,
      calibration: { sequences, length: window },
    });
    const linears = report.layers.flatMap((layer) => layer.linears);
    return {
      perplexities: await perplexitiesOfCheckpoint(output, texts, windows),
      relativeError: linears.reduce((sum, linear) => sum + linear.relativeError, 0) / linears.length,
      pruneSeconds: report.total.seconds,
    };
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Of a Hugging Face folder. */
export async function perplexitiesOfCheckpoint(
  checkpoint: string,
  texts: Texts,
  windows: number,
): Promise<Perplexities> {
  const folder = await mkdtemp(join(tmpdir(), 'flashllm-accuracy-'));
  try {
    await exportOpt(checkpoint, { output: folder });
    return await perplexitiesOf(folder, texts, windows);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Of an exported or rewritten folder. */
export async function perplexitiesOf(folder: string, texts: Texts, windows: number): Promise<Perplexities> {
  const model = await openTextModel(folder, { executionProviders: ['flashllm', 'cpu'] });
  const measured: Perplexities = {};
  for (const [name, text] of Object.entries(texts)) {
    const ids = pick(model.tokenizer.encode(text), windows);
    measured[name] = (await measurePerplexity(model.decoder, ids, { window })).perplexity;
  }
  await model.session.release();
  return measured;
}

/** Windows that lie evenly spaced in the text, one after the other. */
function pick(ids: readonly number[], windows: number): number[] {
  const count = Math.floor(ids.length / window);
  const taken = Math.min(windows, count);
  return Array.from({ length: taken }, (_, i) => Math.floor((i * count) / taken) * window).flatMap((at) =>
    ids.slice(at, at + window),
  );
}
