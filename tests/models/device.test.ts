// Generation with keys and values on a GPU gives the texts of the CPU. Skipped where the provider offers no GPU.
import { readdirSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import anyTest from 'ava';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { deviceMemory } from '../../models/generation/device-memory.js';
import { RowCache } from '../../models/generation/row-cache.js';
import { readOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { shippedHeldOutText, shippedModel } from '../../models/shipped.js';
import { TextGenerator } from '../../models/text-generator.js';
import { openTextModel } from '../../models/text-model.js';
import { offersGpu, writeOnDevice } from '../../provider/device-tensor.js';
import { allocateOnDevice, doctorFacts, type PreparedRun, prepareRun } from '../../provider/index.js';
import { elementTypes, plainModel, valueInfo } from '../provider/sparse-model.js';
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
const two = offered && offersGpu(1);
if (offered && !two) console.error('the test of two GPUs is skipped: the provider offers one');
const testOfTwo = two ? anyTest.serial : anyTest.serial.skip;

test('a large array written to a GPU leaves no threads behind', async (t) => {
  const threads = () => readdirSync('/proc/self/task').length;
  const tensor = allocateOnDevice(Tensor, 'float32', [2 ** 21]);
  const small = allocateOnDevice(Tensor, 'float32', [1]);
  writeOnDevice(small, Float32Array.of(1)); // after it the driver has its own threads, but for one or the other
  const before = threads();
  const written = Float32Array.from({ length: 2 ** 21 }, (_, i) => i);
  writeOnDevice(tensor, written);
  t.true(threads() < before + 3, `${threads()} threads, before ${before}`);
  t.true(Buffer.from(((await tensor.getData()) as Float32Array).buffer).equals(Buffer.from(written.buffer)));
  for (const one of [tensor, small]) one.dispose();
});

test('sequences join and leave a batch on the GPU and get the texts of the CPU', async (t) => {
  const folder = await temporaryFolder();
  t.teardown(() => rm(folder, { recursive: true }));
  await exportOpt(shippedModel(), { output: folder, dtype: 'float16' });
  const config = await readOptConfig(folder);
  const gpu = await openTextModel(folder, {
    executionProviders: [{ name: 'flashllm', device: 'cuda' }, 'cpu'],
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
  await shared.scheduler.close();
  await Promise.all([gpu.session.release(), cpu.session.release()]);
});

test('recorded steps give what steps that are run give, bit for bit, also beside runs of another kind', async (t) => {
  const folder = await temporaryFolder();
  t.teardown(() => rm(folder, { recursive: true }));
  await exportOpt(shippedModel(), { output: folder, dtype: 'float16' });
  const config = await readOptConfig(folder);
  const open = (cudaGraph?: boolean) => {
    const ours = {
      ...{ name: 'flashllm', device: 'cuda' },
      ...(cudaGraph === undefined ? {} : { cudaGraph }),
    } as const;
    return openTextModel(folder, { executionProviders: [ours, 'cpu'] });
  };
  const [recorded, plain] = await Promise.all([open(), open(false)]);
  const heldOut = await readFile(shippedHeldOutText(), 'utf8');
  // 13 prompts in a batch of 10, whose texts end one after the other: steps of 10, 8, 4, 2 and 1 rows, one wider than 512.
  const prompts = Array.from({ length: 13 }, (_, i) =>
    heldOut.slice(500 * i, 500 * i + (i === 4 ? 1900 : 20 + 11 * i)),
  );
  const settings = [{ logprobs: 2 }, {}, { temperature: 0.9, topK: 50, seed: 7 }];
  const generators = [recorded, plain].map(
    ({ decoder, tokenizer }) =>
      new TextGenerator(decoder, tokenizer, config, { maxBatch: 10, prefillTokens: 64, idleCacheBytes: 2 ** 30 }),
  );
  for (const setting of settings) {
    const texts = [];
    for (const generator of generators) {
      const made = prompts.map((prompt, i) =>
        generator.start([prompt], { ...setting, maxNewTokens: 4 + 3 * i, stopTokenIds: [] }),
      );
      texts.push(await Promise.all(made.flat().map(({ result }) => result)));
      // The next setting's steps are these, which have outlasted the queue, over a cache that is full of older tokens.
      await generator.scheduler.idle();
      t.true(generator.scheduler.cacheBytes > 0);
    }
    t.deepEqual(texts[0], texts[1]);
  }
  for (const { scheduler } of generators) {
    await scheduler.close();
    t.is(scheduler.cacheBytes, 0);
  }
  // Runs of other shapes with tensors of the host: no recorded graph is taken for them.
  for (const length of [5, 9, 5, 5, 5]) {
    const ids = Array.from({ length }, (_, i) => (length * 31 + i * 7) % 8000);
    const step = { ids: [ids], mask: [ids.map(() => 1)] };
    const [a, b] = await Promise.all([recorded.decoder.step(step), plain.decoder.step(step)]);
    t.deepEqual(a.logits.at(0, length - 1), b.logits.at(0, length - 1));
  }
  await Promise.all([recorded.session.release(), plain.session.release()]);
});

testOfTwo('two GPUs at once give the texts of one', async (t) => {
  const folder = await temporaryFolder();
  t.teardown(() => rm(folder, { recursive: true }));
  await exportOpt(shippedModel(), { output: folder, dtype: 'float16' });
  const config = await readOptConfig(folder);
  const open = async (deviceId: number) => {
    const ours = { name: 'flashllm', device: 'cuda', deviceId } as const;
    const model = await openTextModel(folder, { executionProviders: [ours, 'cpu'] });
    return { model, generator: new TextGenerator(model.decoder, model.tokenizer, config, { maxBatch: 4 }) };
  };
  const both = await Promise.all([open(0), open(1)]);
  const heldOut = await readFile(shippedHeldOutText(), 'utf8');
  const prompts = Array.from({ length: 6 }, (_, i) => heldOut.slice(900 * i, 900 * i + 20 + 30 * i));
  const texts = ({ generator }: (typeof both)[0]) =>
    generator.generate(prompts, { maxNewTokens: 24, stopTokenIds: [], logprobs: 1 });
  const alone = await texts(both[0] as (typeof both)[0]);
  for (const found of await Promise.all(both.map(texts))) t.deepEqual(found, alone);
  for (const { model, generator } of both) {
    await generator.scheduler.close();
    await model.session.release();
  }
});

test('a prepared run mirrors what is asked for, and says what does not fit', async (t) => {
  const folder = await temporaryFolder();
  t.teardown(() => rm(folder, { recursive: true }));
  await exportOpt(shippedModel(), { output: folder, dtype: 'float16' });
  const gpu = await openTextModel(folder, {
    executionProviders: [{ name: 'flashllm', device: 'cuda' }, 'cpu'],
  });
  const { decoder } = gpu;
  t.true(decoder.hasRows());
  if (!decoder.hasRows()) return;
  const cache = new RowCache(decoder.shape, 2, decoder.memory);
  await cache.reserve(2, 64, []);
  const int64 = (...values: number[]) =>
    new Tensor('int64', BigInt64Array.from(values, BigInt), [2, values.length / 2]);
  const ids = int64(17, 40);
  const mask = int64(...Array.from({ length: 128 }, (_, i) => (i % 64 === 0 ? 1 : 0)));
  const views = cache.views(0, 2);
  const place = decoder.memory.place;
  const likeliest = int64(-1, -1);
  const feeds = { ...decoder.named({ ids: place(ids), mask: place(mask), positions: place(int64(0, 0)) }), ...views };
  const fetches = { likeliest: place(likeliest), ...decoder.presentOf(views) };
  t.throws(() => prepareRun(gpu.session, { ...feeds, input_ids: ids }, fetches), { message: /mirror it there/ });
  const run = prepareRun(gpu.session, feeds, fetches) as PreparedRun;
  await run.start([]);
  t.deepEqual([...(likeliest.data as BigInt64Array)], [-1n, -1n]);
  for (const id of [17, 900, 17]) {
    (ids.data as BigInt64Array).fill(BigInt(id));
    await run.start();
    const { logits } = await decoder.step({ ids: [[id]], mask: [[1]] });
    const expected = logits.at(0, 0);
    const best = expected.indexOf(expected.reduce((a, b) => Math.max(a, b)));
    t.deepEqual([...(likeliest.data as BigInt64Array)], [BigInt(best), BigInt(best)]);
  }
  // A token beyond the table: found on the device, in a replayed graph; the next start is sound again.
  (ids.data as BigInt64Array).fill(8192n);
  await t.throwsAsync(run.start(), { message: /index/ });
  (ids.data as BigInt64Array).fill(17n);
  await run.start();
  await run.dispose();
  await t.throwsAsync(async () => run.start(), { message: /disposed of/ });
  for (const view of Object.values(views)) decoder.memory.free(view);
  cache.clear();
  await gpu.session.release();
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
  const bits = async (tensor: Tensor) => {
    const data = (await tensor.getData()) as Uint16Array;
    // The array that a tensor of the CPU has: a Float16Array where there is one.
    t.is(data.constructor, new Tensor('float16', new Uint16Array(1), [1]).data.constructor);
    return new Uint16Array(data.buffer);
  };
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

test('nodes of which the GPU kernels compute other cases only are left to the CPU', async (t) => {
  const { FLOAT, INT64 } = elementTypes;
  const wave = (dims: number[]) =>
    new Tensor(
      'float32',
      Float32Array.from({ length: dims.reduce((a, b) => a * b) }, (_, i) => Math.sin(i)),
      dims,
    );
  /** A model that is one node, with inputs of these dimensions and an output of `rank` axes. */
  const model = (node: Record<string, unknown>, inputs: (number | string)[][], rank: number, opset?: number) => {
    const names = inputs.map((_, i) => `in${i}`);
    const graph = {
      input: inputs.map((dims, i) => valueInfo(`in${i}`, FLOAT, dims)),
      output: [
        valueInfo(
          'out',
          FLOAT,
          Array.from({ length: rank }, (_, i) => `d${i}`),
        ),
      ],
      initializer: 'input' in node ? [{ name: 'axes', dataType: INT64, dims: [2], int64Data: [0, -1] }] : [],
      node: [{ output: ['out'], ...node, input: [...names, ...((node.input as string[]) ?? [])] }],
    };
    return { bytes: plainModel(graph, opset), names };
  };
  const skip = { opType: 'SkipLayerNormalization', domain: 'com.microsoft' };
  const axes = { name: 'axes', type: 'INTS', ints: [0, 2] };
  const nine = [1, 2, 1, 2, 1, 2, 1, 2, 1];
  const cases = [
    ['a skip of one sequence', model(skip, [['b', 3, 16], [1, 3, 16], [16]], 3), [[2, 3, 16], [1, 3, 16], [16]]],
    ['a skip of two axes', model(skip, [['b', 3, 16], [3, 16], [16]], 3), [[2, 3, 16], [3, 16], [16]]],
    ['axes apart', model({ opType: 'ReduceMax', attribute: [axes] }, [[2, 'n', 4]], 3, 13), [[2, 3, 4]]],
    ['axes of an input', model({ opType: 'ReduceMax', input: ['axes'] }, [[2, 'n', 4]], 3, 18), [[2, 3, 4]]],
    ['nine axes', model({ opType: 'Add' }, [nine, nine], 9), [nine, nine]],
  ] as const;
  for (const [what, { bytes, names }, shapes] of cases) {
    const feeds = Object.fromEntries(names.map((name, i) => [name, wave([...(shapes[i] as readonly number[])])]));
    const results = [];
    for (const provider of [{ name: 'flashllm', device: 'cuda' }, 'cpu'] as const) {
      const session = await InferenceSession.create(bytes, { executionProviders: [provider] });
      const { out } = await session.run(feeds);
      results.push([out?.dims, out?.data]);
      await session.release();
    }
    t.deepEqual(results[0], results[1], what);
  }
});

test('integers are divided on the GPU, toward zero; by zero is an error that names the node', async (t) => {
  for (const type of ['int32', 'int64'] as const) {
    const kind = elementTypes[type === 'int32' ? 'INT32' : 'INT64'];
    const bytes = plainModel({
      node: [{ opType: 'Div', name: 'divide', input: ['a', 'b'], output: ['y'] }],
      input: ['a', 'b'].map((name) => valueInfo(name, kind, ['n'])),
      output: [valueInfo('y', kind, ['n'])],
    });
    const session = await InferenceSession.create(bytes, {
      executionProviders: [{ name: 'flashllm', device: 'cuda' }],
      extra: { session: { disable_cpu_ep_fallback: '1' } },
    });
    const integers = (...values: number[]) =>
      type === 'int32' ? new Tensor(type, values, [4]) : new Tensor(type, values.map(BigInt), [4]);
    const a = integers(7, -7, 9, 0);
    const divided = async (b: Tensor) => Array.from((await session.run({ a, b })).y?.data as Int32Array, Number);
    t.deepEqual(await divided(integers(2, 2, -4, 5)), [3, -3, -2, 0]);
    await t.throwsAsync(divided(integers(2, 0, -4, 5)), { message: /Div node 'divide'.*divided by zero/ });
    t.deepEqual(await divided(integers(1, 7, 3, -5)), [7, -1, 3, 0]);
    await session.release();
  }
});
