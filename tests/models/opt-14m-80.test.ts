// The shipped sparse model: what it is made of, what its training has kept, and that it still speaks.
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { inspectModel } from '../../graph-passes/index.js';
import { exportOpt } from '../../models/opt/export.js';
import { measurePerplexity } from '../../models/perplexity.js';
import { shippedInDomainText, shippedModel, shippedSparseModel } from '../../models/shipped.js';
import { openTextModel } from '../../models/text-model.js';
import '../../provider/index.js';

test('the linears of its layers have 80 % zeros together and are packed, in files of less than half the dense size', async (t) => {
  const report = await inspectModel({ input: join(shippedSparseModel(), 'model.onnx') });
  const packed = report.layers.filter(({ decision }) => decision === 'sparse');
  t.is(packed.length, 24);
  let weights = 0;
  let zeros = 0;
  for (const { outFeatures = 0, inFeatures = 0, sparsity = 0 } of packed) {
    weights += outFeatures * inFeatures;
    zeros += outFeatures * inFeatures * sparsity;
  }
  t.is(weights, 6 * (4 * 384 * 384 + 2 * 384 * 1536));
  t.true(zeros / weights >= 0.7999, `${zeros / weights}`);
  const { size } = await stat(join(shippedSparseModel(), 'model.onnx_data'));
  t.true(size < 14_000_000, `${size}`);
});

/** Perplexity on six windows of 512 tokens spread over the in-domain text. */
async function perplexity(folder: string, executionProviders: string[]): Promise<number> {
  const model = await openTextModel(folder, { executionProviders });
  const ids = model.tokenizer.encode(await readFile(shippedInDomainText(), 'utf8'));
  const piece = Math.floor(ids.length / 6);
  const windows = Array.from({ length: 6 }, (_, i) => ids.slice(i * piece, i * piece + 512)).flat();
  const measured = await measurePerplexity(model.decoder, windows, { window: 512 });
  await model.session.release();
  return measured.perplexity;
}

// docs/accuracy.md: 1.53 times on windows of 1,024 tokens.
test('its perplexity is below 1.65 times that of the dense model, and that of stock ONNX Runtime', async (t) => {
  const dense = await mkdtemp(join(tmpdir(), 'flashllm-test-'));
  await exportOpt(shippedModel(), { output: dense });
  const whole = await perplexity(dense, ['cpu']);
  const ours = await perplexity(shippedSparseModel(), ['flashllm', 'cpu']);
  const stock = await perplexity(shippedSparseModel(), ['cpu']);
  t.log({ whole, ours, stock });
  t.true(Math.abs(ours / stock - 1) < 1e-4);
  t.true(ours < 1.65 * whole, `${ours} against ${whole}`);
  await rm(dense, { recursive: true });
});

test('it writes sentences of words', async (t) => {
  const model = await openTextModel(shippedSparseModel(), { executionProviders: ['flashllm', 'cpu'] });
  let text = '';
  const options = { maxNewTokens: 64, stopTokenIds: [], temperature: 0.7, topP: 0.9, seed: 1 };
  for await (const piece of model.generator.stream('The state of our Union is', options)) text += piece.text;
  await model.session.release();
  t.log(text);
  const words = text.match(/[a-z]+/gi) ?? [];
  t.true(words.length > 30, text);
  t.true(new Set(words).size > words.length / 3, text);
});
