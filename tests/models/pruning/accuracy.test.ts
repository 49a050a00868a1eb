// What pruning costs the shipped model: each method against the others, and compensation against none.
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { exportOpt } from '../../../models/opt/export.js';
import { measurePerplexity } from '../../../models/perplexity.js';
import { type PruneSettings, pruneOpt } from '../../../models/pruning/index.js';
import { shippedInDomainText, shippedModel } from '../../../models/shipped.js';
import { openTextModel } from '../../../models/text-model.js';

/** Perplexity on six windows spread over the held-out text, of the dense model or of one that is pruned to 60 % on as much calibration text. */
async function perplexity(
  settings?: Omit<PruneSettings, 'sparsity'>,
  calibration = { sequences: 24, length: 256 },
): Promise<number> {
  const scratch = await mkdtemp(join(tmpdir(), 'flashllm-test-'));
  const pruned = join(scratch, 'pruned');
  if (settings) await pruneOpt(shippedModel(), { ...settings, output: pruned, sparsity: 0.6, calibration });
  await exportOpt(settings ? pruned : shippedModel(), { output: join(scratch, 'onnx') });
  const model = await openTextModel(join(scratch, 'onnx'), { executionProviders: ['cpu'] });
  const ids = model.tokenizer.encode(await readFile(shippedInDomainText(), 'utf8'));
  const piece = Math.floor(ids.length / 6);
  const windows = Array.from({ length: 6 }, (_, i) => ids.slice(i * piece, i * piece + 512)).flat();
  const measured = await measurePerplexity(model.decoder, windows, { window: 512 });
  await model.session.release();
  await rm(scratch, { recursive: true });
  return measured.perplexity;
}

test('at 60 %: dense < admm < sparsegpt < wanda < magnitude', async (t) => {
  const dense = await perplexity();
  const magnitude = await perplexity({ method: 'magnitude' });
  const wanda = await perplexity({ method: 'wanda' });
  const sparsegpt = await perplexity({});
  const admm = await perplexity({ method: 'admm' });
  const found = JSON.stringify({ dense, admm, sparsegpt, wanda, magnitude });
  t.log(found);
  t.true(dense < admm && admm < sparsegpt && sparsegpt < wanda && wanda < magnitude, found);
  t.true(sparsegpt < 2 * dense, found);
});

// With the 6,000 tokens above it is noise that fc2's 1,536 inputs would be fitted to (docs/accuracy.md).
test('at 60 %: compensation helps where there is enough text', async (t) => {
  const enough = { sequences: 20, length: 1024 };
  const compensated = await perplexity({}, enough);
  const alone = await perplexity({ compensation: false }, enough);
  t.log({ compensated, alone });
  t.true(compensated < alone, JSON.stringify({ compensated, alone }));
});
