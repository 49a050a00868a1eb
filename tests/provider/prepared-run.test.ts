// Runs that are made once and started often.
import test from 'ava';
import ort from 'onnxruntime-node';
import { InvalidOptionError, OrtError, prepareRun } from '../../provider/index.js';
import { elementTypes, plainModel, valueInfo } from './sparse-model.js';

const graph = {
  node: [
    { opType: 'Add', input: ['a', 'b'], output: ['sum'] },
    { opType: 'Mul', input: ['a', 'b'], output: ['product'] },
  ],
  input: ['a', 'b'].map((name) => valueInfo(name, elementTypes.FLOAT, ['n'])),
  output: ['sum', 'product'].map((name) => valueInfo(name, elementTypes.FLOAT, ['n'])),
};

function session(...executionProviders: string[]): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(plainModel(graph), { executionProviders });
}

const floats = (...values: number[]) => new ort.Tensor('float32', Float32Array.from(values), [values.length]);

test('each start reads the arrays anew and writes into the same ones', async (t) => {
  const one = await session('flashllm', 'cpu');
  const [a, b, sum, product] = [floats(1, 2, 3), floats(4, 5, 6), floats(0, 0, 0), floats(0, 0, 0)];
  const run = prepareRun(one, { a, b }, { product, sum });
  for (let i = 0; i < 50; i++) {
    (a.data as Float32Array).set([i, -i, 0.5]);
    await run?.start();
    t.deepEqual([...(sum.data as Float32Array)], [i + 4, 5 - i, 6.5]);
    t.deepEqual([...(product.data as Float32Array)], [4 * i, -5 * i, 3]);
  }
  await run?.dispose();
  await run?.dispose();
  await t.throwsAsync(async () => run?.start(), { instanceOf: OrtError, message: /has been disposed of/ });
  await one.release();
});

test('several prepared and ordinary runs of a session go at once; one is not started twice', async (t) => {
  const one = await session('flashllm', 'cpu');
  const size = 1_000_000;
  const made = Array.from({ length: 6 }, (_, i) => {
    const filled = (value: number) => new ort.Tensor('float32', new Float32Array(size).fill(value), [size]);
    const [a, sum, product] = [filled(i), filled(-1), filled(-1)];
    return { a, sum, run: prepareRun(one, { a, b: a }, { sum, product }) };
  });
  const started = made.map(({ run }) => run?.start());
  await t.throwsAsync(async () => made[5]?.run?.start(), { message: /is under way/ });
  await Promise.all([...started, ...made.map(({ a }) => one.run({ a, b: a }))]);
  for (const [i, { sum }] of made.entries()) t.true((sum.data as Float32Array).every((value) => value === 2 * i));
  await made[0]?.run?.start();
  // Disposing while it runs: it runs to its end.
  const last = made[1]?.run?.start();
  await Promise.all([last, ...made.map(({ run }) => run?.dispose())]);
  await one.release();
});

test('disposing settles after a start that nobody has waited for, and from then on nothing is written', async (t) => {
  const size = 4_000_000;
  for (const released of [false, true]) {
    const one = await session('flashllm', 'cpu');
    const [a, sum, product] = [2, -1, -1].map((value) => new Float32Array(size).fill(value)) as [
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const tensor = (data: Float32Array) => new ort.Tensor('float32', data, [size]);
    const run = prepareRun(one, { a: tensor(a), b: tensor(a) }, { sum: tensor(sum), product: tensor(product) });
    const settled: string[] = [];
    const started = run?.start().then(() => settled.push('start'));
    // The session's release is under way, too: then there is no graph to release, but still a start to wait for.
    const release = released ? one.release() : undefined;
    await run?.dispose().then(() => settled.push('dispose'));
    for (const results of [sum, product]) {
      t.true(results.every((value) => value === 4));
      results.fill(-1);
    }
    await started;
    await (release ?? one.release());
    for (const results of [sum, product]) t.true(results.every((value) => value === -1));
    t.deepEqual(settled, ['start', 'dispose']);
  }
});

test('a start reads no memory that has been transferred away', async (t) => {
  const one = await session('flashllm', 'cpu');
  for (const lost of ['a', 'b', 'sum'] as const) {
    const tensors = { a: floats(1, 2), b: floats(3, 4), sum: floats(0, 0) };
    const { a, b, sum } = tensors;
    const run = prepareRun(one, { a, b }, { sum });
    await run?.start();
    const { buffer } = tensors[lost].data as Float32Array<ArrayBuffer>;
    structuredClone(buffer, { transfer: [buffer] });
    await t.throwsAsync(async () => run?.start(), {
      instanceOf: OrtError,
      message: new RegExp(`'${lost}' has lost its memory`),
    });
    await run?.dispose();
  }
  await one.release();
});

test('what does not fit is an error when the run is made, a failure of the model when it is started', async (t) => {
  const one = await session('flashllm', 'cpu');
  const [a, sum] = [floats(1, 2), floats(0, 0)];
  const make = (feeds: Record<string, ort.Tensor>, fetches: Record<string, ort.Tensor>) =>
    prepareRun(one, feeds, fetches);
  t.throws(() => make({ a, b: a }, { nothing: sum }), {
    instanceOf: InvalidOptionError,
    message: /no output 'nothing'/,
  });
  t.throws(() => make({ a, b: new ort.Tensor('string', ['x'], [1]) }, { sum }), { message: /numbers for 'b'/ });
  t.throws(() => prepareRun(one, { a, b: { host: a, device: sum } }, { sum }), {
    message: /mirrored by a tensor/,
  });
  t.throws(() => prepareRun(one, { a, b: { host: a, device: floats(1) } }, { sum }), {
    message: /mirrored by a tensor/,
  });
  const short = make({ a, b: floats(1, 2, 3) }, { sum });
  await t.throwsAsync(async () => short?.start(), { instanceOf: OrtError });
  await t.throwsAsync(async () => make({ a }, { sum })?.start(), { instanceOf: OrtError });
  const run = make({ a, b: a }, { sum });
  await run?.start();
  t.deepEqual([...(sum.data as Float32Array)], [2, 4]);
  await one.release();
  await t.throwsAsync(async () => run?.start(), { message: /has been released/ });
  t.throws(() => make({ a, b: a }, { sum }), { message: /has been released/ });
  await run?.dispose();
});

test('a session of another backend has none', async (t) => {
  const stock = await session('cpu');
  const a = floats(1);
  t.is(prepareRun(stock, { a, b: a }, { sum: a }), undefined);
  await stock.release();
});
