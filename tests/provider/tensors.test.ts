import test from 'ava';
import ort from 'onnxruntime-node';
import { OrtError } from '../../provider/index.js';
import { elementTypes, plainModel, valueInfo } from './sparse-model.js';

const executionProviders = ['flashllm', 'cpu'];

/** A session of `y = Identity(x)` for one element type. */
function identity(elementType: number, dims: (number | string)[] = ['n']): Promise<ort.InferenceSession> {
  const graph = {
    node: [{ opType: 'Identity', input: ['x'], output: ['y'] }],
    input: [valueInfo('x', elementType, dims)],
    output: [valueInfo('y', elementType, dims)],
  };
  return ort.InferenceSession.create(plainModel(graph), { executionProviders });
}

async function roundTrip(x: ort.Tensor, elementType: number): Promise<ort.Tensor> {
  const session = await identity(
    elementType,
    [...x.dims.keys()].map((i) => `d${i}`),
  );
  const { y } = await session.run({ x });
  await session.release();
  if (y === undefined) throw new Error('no output y');
  return y;
}

const samples: [string, number, () => ort.Tensor][] = [
  ['float32', elementTypes.FLOAT, () => new ort.Tensor('float32', Float32Array.of(1.5, -0, Number.NaN, Infinity), [4])],
  ['float64', elementTypes.DOUBLE, () => new ort.Tensor('float64', Float64Array.of(Math.PI, -1e300), [2])],
  ['float16', elementTypes.FLOAT16, () => new ort.Tensor('float16', Uint16Array.of(0x3c00, 0xbc00, 0x7c00), [3])],
  ['int8', elementTypes.INT8, () => new ort.Tensor('int8', Int8Array.of(-128, 127), [2])],
  ['uint8', elementTypes.UINT8, () => new ort.Tensor('uint8', Uint8Array.of(0, 255), [2])],
  ['int16', elementTypes.INT16, () => new ort.Tensor('int16', Int16Array.of(-32768, 32767), [2])],
  ['uint16', elementTypes.UINT16, () => new ort.Tensor('uint16', Uint16Array.of(0, 65535), [2])],
  ['int32', elementTypes.INT32, () => new ort.Tensor('int32', Int32Array.of(-(2 ** 31), 2 ** 31 - 1), [2])],
  ['uint32', elementTypes.UINT32, () => new ort.Tensor('uint32', Uint32Array.of(0, 2 ** 32 - 1), [2])],
  ['int64', elementTypes.INT64, () => new ort.Tensor('int64', BigInt64Array.of(-(2n ** 63n), 2n ** 63n - 1n), [2])],
  ['uint64', elementTypes.UINT64, () => new ort.Tensor('uint64', BigUint64Array.of(0n, 2n ** 64n - 1n), [2])],
  ['bool', elementTypes.BOOL, () => new ort.Tensor('bool', [true, false, true], [3])],
  ['string', elementTypes.STRING, () => new ort.Tensor('string', ['', 'a', 'naïve 漢字 🙂'], [3])],
];

for (const [type, elementType, make] of samples) {
  test(`${type} tensors pass unchanged, by value and into a preallocated output`, async (t) => {
    const x = make();
    const y = await roundTrip(x, elementType);
    t.is(y.type, x.type);
    t.deepEqual(y.dims, x.dims);
    t.deepEqual(y.data, x.data);
    t.is((y.data as object).constructor, (x.data as object).constructor);

    const session = await identity(elementType);
    const empty =
      type === 'string' ? new Array(x.size).fill('') : new (x.data.constructor as Uint8ArrayConstructor)(x.size);
    const given = new ort.Tensor(x.type as 'uint8', empty as Uint8Array, x.dims);
    const results = await session.run({ x }, { y: given });
    t.is(results.y, given);
    t.deepEqual(given.data, x.data);
    await session.release();
  });
}

test('large tensors pass unchanged, and the output outlives its session and the input', async (t) => {
  const data = Float32Array.from({ length: 300_000 }, (_, i) => Math.sin(i));
  const y = await roundTrip(new ort.Tensor('float32', data.slice(), [300_000]), elementTypes.FLOAT);
  t.deepEqual(y.data, data);
});

test('scalars, empty tensors and high ranks pass', async (t) => {
  for (const dims of [[], [0], [3, 0, 2], [1, 1, 1, 1, 1, 1, 2]]) {
    const size = dims.reduce((a, b) => a * b, 1);
    const y = await roundTrip(new ort.Tensor('float32', new Float32Array(size).fill(2), dims), elementTypes.FLOAT);
    t.deepEqual([...y.dims], dims);
    t.deepEqual(y.data, new Float32Array(size).fill(2));
  }
});

test('views with an offset and views of shared memory are read where they lie', async (t) => {
  const whole = Float32Array.of(9, 9, 1, 2, 3, 9);
  const view = await roundTrip(new ort.Tensor('float32', whole.subarray(2, 5), [3]), elementTypes.FLOAT);
  t.deepEqual(view.data, Float32Array.of(1, 2, 3));
  const shared = new Float32Array(new SharedArrayBuffer(12));
  shared.set([4, 5, 6]);
  const copied = await roundTrip(new ort.Tensor('float32', shared, [3]), elementTypes.FLOAT);
  t.deepEqual(Float32Array.from(copied.data as Float32Array), Float32Array.of(4, 5, 6));
});

test('an output that is an input is a tensor of its own', async (t) => {
  const graph = {
    node: [{ opType: 'Neg', input: ['x'], output: ['z'] }],
    input: [valueInfo('x', elementTypes.FLOAT, ['n'])],
    output: [valueInfo('z', elementTypes.FLOAT, ['n']), valueInfo('x', elementTypes.FLOAT, ['n'])],
  };
  const session = await ort.InferenceSession.create(plainModel(graph), { executionProviders });
  const data = new Float32Array(1000).fill(3);
  const results = await session.run({ x: new ort.Tensor('float32', data, [1000]) });
  data.fill(5);
  t.deepEqual(results.x?.data, new Float32Array(1000).fill(3));
  t.deepEqual(results.z?.data, new Float32Array(1000).fill(-3));
  await session.release();
});

test('an output that is an initializer can be written to without changing the model', async (t) => {
  const weight = Float32Array.from({ length: 1000 }, (_, i) => i);
  const graph = {
    node: [{ opType: 'Neg', input: ['x'], output: ['y'] }],
    initializer: [{ name: 'w', dataType: elementTypes.FLOAT, dims: [1000], rawData: new Uint8Array(weight.buffer) }],
    input: [valueInfo('x', elementTypes.FLOAT, ['n'])],
    output: [valueInfo('y', elementTypes.FLOAT, ['n']), valueInfo('w', elementTypes.FLOAT, [1000])],
  };
  const session = await ort.InferenceSession.create(plainModel(graph), { executionProviders });
  const x = new ort.Tensor('float32', new Float32Array(1), [1]);
  const first = await session.run({ x });
  ((first.w as ort.Tensor).data as Float32Array).fill(-1);
  const second = await session.run({ x });
  t.deepEqual(second.w?.data, weight);
  await session.release();
});

test('outputs can be chosen by name, and given tensors mixed with made ones', async (t) => {
  const graph = {
    node: [
      { opType: 'Neg', input: ['x'], output: ['a'] },
      { opType: 'Abs', input: ['x'], output: ['b'] },
    ],
    input: [valueInfo('x', elementTypes.FLOAT, ['n'])],
    output: [valueInfo('a', elementTypes.FLOAT, ['n']), valueInfo('b', elementTypes.FLOAT, ['n'])],
  };
  const session = await ort.InferenceSession.create(plainModel(graph), { executionProviders });
  const x = new ort.Tensor('float32', Float32Array.of(-1, 2), [2]);
  t.deepEqual(Object.keys(await session.run({ x }, ['b'])), ['b']);
  const given = new ort.Tensor('float32', new Float32Array(2), [2]);
  const results = await session.run({ x }, { a: null, b: given });
  t.deepEqual(results.a?.data, Float32Array.of(1, -2));
  t.is(results.b, given);
  t.deepEqual(given.data, Float32Array.of(1, 2));
  await session.release();
});

test('a preallocated output of the wrong shape is an error', async (t) => {
  const session = await identity(elementTypes.FLOAT);
  const x = new ort.Tensor('float32', new Float32Array(3), [3]);
  const error = await t.throwsAsync(session.run({ x }, { y: new ort.Tensor('float32', new Float32Array(2), [2]) }));
  t.true(error instanceof OrtError);
  await session.release();
});

test('a tensor of the wrong type, a wrong element and a disposed tensor are errors that name it', async (t) => {
  const session = await identity(elementTypes.FLOAT);
  await t.throwsAsync(session.run({ x: new ort.Tensor('int32', new Int32Array(2), [2]) }), {
    code: 'ORT_INVALID_ARGUMENT',
    message: /int32.*float/s,
  });
  await t.throwsAsync(session.run({ x: { type: 'float33', dims: [1] } as unknown as ort.Tensor }), {
    code: 'ERR_FLASHLLM_OPTION',
    message: /Expected a Tensor for 'x' but received type float33/,
  });
  const disposed = new ort.Tensor('float32', new Float32Array(2), [2]);
  disposed.dispose();
  await t.throwsAsync(session.run({ x: disposed }), { message: /'x'.*'none'/ });
  const lying = { type: 'float32', dims: [1000], data: new Float32Array(2), location: 'cpu' } as unknown as ort.Tensor;
  await t.throwsAsync(session.run({ x: lying }), {
    code: 'ORT_INVALID_ARGUMENT',
    message: /'x' has 8 bytes of data.*need 4000/,
  });
  await session.release();
  const strings = await identity(elementTypes.STRING);
  await t.throwsAsync(strings.run({ x: new ort.Tensor('string', ['a', 5 as unknown as string], [2]) }), {
    message: /element 1 is no string/,
  });
  await strings.release();
});

test('outputs that JavaScript cannot hold are errors that say so', async (t) => {
  const graph = {
    node: [
      { opType: 'Cast', input: ['x'], output: ['y'], attribute: [{ name: 'to', i: elementTypes.BFLOAT16, type: 2 }] },
    ],
    input: [valueInfo('x', elementTypes.FLOAT, ['n'])],
    output: [valueInfo('y', elementTypes.BFLOAT16, ['n'])],
  };
  const bfloat16 = await ort.InferenceSession.create(plainModel(graph), { executionProviders });
  await t.throwsAsync(bfloat16.run({ x: new ort.Tensor('float32', new Float32Array(2), [2]) }), {
    code: 'ORT_NOT_IMPLEMENTED',
    message: /output 'y' has element type 16.*Cast it/,
  });
  await bfloat16.release();
  const sequence = {
    node: [{ opType: 'SequenceConstruct', input: ['x'], output: ['y'] }],
    input: [valueInfo('x', elementTypes.FLOAT, ['n'])],
    output: [{ name: 'y', type: { sequenceType: { elemType: { tensorType: { elemType: elementTypes.FLOAT } } } } }],
  };
  const session = await ort.InferenceSession.create(plainModel(sequence), { executionProviders });
  t.deepEqual(session.outputMetadata, [{ name: 'y', isTensor: false }]);
  await t.throwsAsync(session.run({ x: new ort.Tensor('float32', new Float32Array(2), [2]) }), {
    message: /only tensors/,
  });
  await session.release();
});
