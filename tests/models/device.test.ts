// Generation with keys and values on a GPU gives the texts of the CPU. Skipped where the provider offers no GPU.
import { readFile, rm } from 'node:fs/promises';
import anyTest from 'ava';
import { Tensor } from 'onnxruntime-node';
import { deviceMemory } from '../../models/generation/device-memory.js';
import { readOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { shippedHeldOutText, shippedModel } from '../../models/shipped.js';
import { TextGenerator } from '../../models/text-generator.js';
import { openTextModel } from '../../models/text-model.js';
import { allocateOnDevice, doctorFacts } from '../../provider/index.js';
import { temporaryFolder } from './support/checkpoints.js';

const offered = (() => {
  try {
    // It loads the runtime, without which nothing can be allocated.
    doctorFacts();
    allocateOnDevice(Tensor, 'uint8', [1]).dispose();
    return true;
  } catch {
    return false;
  }
})();
if (!offered)
  console.error('tests/models/device.test.ts is skipped: the provider offers no GPU; flashllm doctor tells why');
const test = offered ? anyTest.serial : anyTest.serial.skip;

test('sequences join and leave a batch on the GPU and get the texts of the CPU', async (t) => {
  const folder = await temporaryFolder();
  t.teardown(() => rm(folder, { recursive: true }));
  await exportOpt(shippedModel(), { output: folder, dtype: 'float16' });
  const config = await readOptConfig(folder);
  const gpu = await openTextModel(folder, {
    executionProviders: [{ name: 'flashllm', device: 'cuda' } as never, 'cpu'],
  });
  const cpu = await openTextModel(folder, { executionProviders: ['cpu'] });
  t.not(gpu.decoder.memory, cpu.decoder.memory);
  const heldOut = await readFile(shippedHeldOutText(), 'utf8');
  const prompts = Array.from({ length: 9 }, (_, i) => heldOut.slice(731 * i, 731 * i + ((37 * i) % 160)));
  const shared = new TextGenerator(gpu.decoder, gpu.tokenizer, config, { maxBatch: 4, prefillTokens: 32 });
  for (const logprobs of [undefined, 1]) {
    const options = { maxNewTokens: 12, stopTokenIds: [], logprobs };
    const texts = await shared.generate(prompts, options);
    const expected = await cpu.generator.generate(prompts, { ...options, logprobs: 1 });
    let equal = 0;
    texts.forEach(({ text, logprobs: found }, i) => {
      if (text === expected[i]?.text) equal++;
      // float16 sums in another order may turn a near tie; the first token's probability is the same nevertheless.
      const [a, b] = [found?.[0]?.logprob, expected[i]?.logprobs?.[0]?.logprob as number];
      if (a !== undefined) t.true(Math.abs(a - b) < 0.05, `${a}, expected ${b}`);
    });
    t.true(equal >= 7, `${equal} of 9 texts are equal`);
  }
  await Promise.all([gpu.session.release(), cpu.session.release()]);
});

test('rows of a tensor are views of it; copies go from row to row; wrong rows are refused', async (t) => {
  const memory = deviceMemory();
  const whole = memory.allocate('float16', [3, 2, 64, 8]);
  const other = memory.allocate('float16', [2, 2, 128, 8]);
  const [row, late] = [memory.rows(whole, 1, 2), memory.rows(whole, 1, 1)];
  t.deepEqual(row.dims, [2, 2, 64, 8]);
  t.is(row.location, 'gpu-buffer');
  memory.copyRow(whole, 1, other, 0, 40);
  memory.copyRow(other, 0, whole, 2, 40);
  const bits = async (tensor: Tensor) => new Uint16Array(((await tensor.getData()) as Uint16Array).buffer);
  const data = await bits(whole);
  const head = (r: number, h: number) => [...data.subarray((r * 2 + h) * 512, (r * 2 + h) * 512 + 320)];
  for (const h of [0, 1]) t.deepEqual(head(2, h), head(1, h));
  t.deepEqual([...(await bits(row))], [...data.subarray(1024)]);
  t.throws(() => memory.rows(whole, 2, 2), {
    message: /rows 2 and 2 on are not all in a tensor of shape \[3, 2, 64, 8\]/,
  });
  t.throws(() => memory.copyRow(whole, 0, other, 0, 65), { message: /65 positions/ });
  memory.free(whole);
  // A view keeps the memory.
  t.deepEqual([...(await bits(late))], [...data.subarray(1024, 2048)]);
  t.throws(() => memory.rows(whole, 0, 1));
  for (const view of [row, late]) memory.free(view);
  memory.free(other);
});
