import test from 'ava';
import ort from 'onnxruntime-node';
import { doctorFacts, type FlashLLMOptions } from '../../provider/index.js';
import {
  fromFloat16,
  randomNumbers,
  reference,
  type SparseModelOptions,
  sparseModel,
  toFloat16,
} from './sparse-model.js';

/** The kernels' instruction sets, each of which comes with those before it. */
const KNOWN_ISAS =
  process.arch === 'arm64' ? (['reference', 'neon'] as const) : (['reference', 'avx2', 'avx512'] as const);
const isas = KNOWN_ISAS.slice(0, (KNOWN_ISAS as readonly string[]).indexOf(doctorFacts().cpu?.isa ?? '') + 1);

/** Runs a random model on `n` random rows and returns the largest error in units of its bound, with the output. */
async function worstError(
  options: SparseModelOptions,
  dims: number[],
  provider: Partial<FlashLLMOptions> = {},
  session: ort.InferenceSession.SessionOptions = {},
): Promise<{ worst: number; y: ort.Tensor }> {
  const model = sparseModel(options);
  const created = await ort.InferenceSession.create(model.bytes, {
    ...session,
    executionProviders: [{ name: 'flashllm', ...provider }, 'cpu'],
  });
  const random = randomNumbers(7);
  const half = options.xType === 'float16';
  const count = dims.reduce((a, b) => a * b, 1);
  const make = (length: number) => Float64Array.from({ length }, () => fromFloat16(toFloat16(random() * 2 - 1)));
  const tensor = (data: Float64Array, shape: number[]) =>
    half
      ? new ort.Tensor('float16', Uint16Array.from(data, toFloat16), shape)
      : new ort.Tensor('float32', Float32Array.from(data), shape);
  const x = make(count);
  const feeds: Record<string, ort.Tensor> = { x: tensor(x, dims) };
  const yDims = [...dims.slice(0, -1), options.outFeatures];
  const residual = options.residual ? make((count / options.inFeatures) * options.outFeatures) : undefined;
  if (residual) feeds.residual = tensor(residual, yDims);
  if (options.inBranch) feeds.condition = new ort.Tensor('bool', [true], []);
  const { y } = await created.run(feeds);
  await created.release();
  if (y === undefined) throw new Error('no output y');
  const expected = reference(model, options, x, residual);
  // Node 24 and later have Float16Array, whose elements are numbers; before, float16 tensors hold bits.
  const found = half && y.data instanceof Uint16Array ? Array.from(y.data, fromFloat16) : (y.data as Float32Array);
  let worst = found.length === expected.y.length ? 0 : Number.POSITIVE_INFINITY;
  expected.y.forEach((value, i) => {
    const error = Math.abs((found[i] ?? Number.NaN) - value) / (expected.bound[i] ?? 0);
    worst = Math.max(worst, Number.isNaN(error) ? Number.POSITIVE_INFINITY : error);
  });
  return { worst, y };
}

for (const isa of isas) {
  for (const xType of ['float32', 'float16'] as const) {
    for (const valueType of ['float16', 'bfloat16', 'float32'] as const) {
      test(`every element is within the rounding bound: ${isa}, X ${xType}, values ${valueType}`, async (t) => {
        const shapes: [number, number, number][] = [
          [1, 1, 1],
          [5, 70, 3],
          [33, 129, 1],
          [64, 256, 8],
          [17, 63, 16],
          [40, 200, 65],
        ];
        for (const [outFeatures, inFeatures, n] of shapes) {
          for (const density of [0, 0.3, 1]) {
            const options: SparseModelOptions = {
              outFeatures,
              inFeatures,
              density,
              xType,
              valueType,
              bias: true,
              residual: true,
              activation: 'relu',
            };
            const { worst } = await worstError(options, [n, inFeatures], { isa });
            t.true(worst <= 1, `${outFeatures}×${inFeatures}, n ${n}, density ${density}: ${worst} of the bound`);
          }
        }
      });
    }
  }
}

test('bias, residual and activation may be there or not, in every combination', async (t) => {
  for (const xType of ['float32', 'float16'] as const) {
    for (const bias of [false, true]) {
      for (const residual of [false, true]) {
        for (const activation of ['none', 'relu', undefined]) {
          const options = {
            outFeatures: 20,
            inFeatures: 90,
            xType,
            bias,
            residual,
            ...(activation ? { activation } : {}),
          };
          const { worst } = await worstError(options, [4, 90]);
          t.true(worst <= 1, JSON.stringify({ xType, bias, residual, activation, worst }));
        }
      }
    }
  }
});

test('X of any rank from 2 on keeps its leading dimensions', async (t) => {
  const shapes = [
    [6, 50],
    [2, 3, 50],
    [2, 1, 3, 50],
    [1, 2, 3, 1, 50],
  ];
  for (const dims of shapes) {
    const leading = dims.slice(0, -1).map((_, i) => `d${i}`);
    const { worst, y } = await worstError({ outFeatures: 7, inFeatures: 50, leading }, dims);
    t.deepEqual([...y.dims], [...dims.slice(0, -1), 7]);
    t.true(worst <= 1);
  }
});

test('an empty batch gives an empty output', async (t) => {
  const { y } = await worstError({ outFeatures: 7, inFeatures: 50 }, [0, 50]);
  t.deepEqual([...y.dims], [0, 7]);
  t.is(y.data.length, 0);
});

test('the node runs inside the branches of an If', async (t) => {
  const { worst } = await worstError({ outFeatures: 12, inFeatures: 66, bias: true, inBranch: true }, [3, 66]);
  t.true(worst <= 1);
});

test('results are the same bits whatever the number of threads', async (t) => {
  const options = { outFeatures: 150, inFeatures: 300, bias: true };
  for (const n of [1, 9, 70]) {
    const one = await worstError(options, [n, 300], {}, { intraOpNumThreads: 1 });
    const two = await worstError(options, [n, 300], {}, { intraOpNumThreads: 2 });
    const many = await worstError(options, [n, 300], { threads: 7 });
    t.deepEqual(two.y.data, one.y.data);
    t.deepEqual(many.y.data, one.y.data);
  }
});

test('shapes are inferred: out_features and the symbols of X', async (t) => {
  const { bytes } = sparseModel({ outFeatures: 9, inFeatures: 30, leading: ['batch', 'tokens'] });
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ['flashllm', 'cpu'] });
  t.deepEqual(session.outputMetadata[0], { name: 'y', isTensor: true, type: 'float32', shape: ['batch', 'tokens', 9] });
  await session.release();
});

test('a wrong last dimension and a wrong residual are errors of the run', async (t) => {
  const { bytes } = sparseModel({ outFeatures: 9, inFeatures: 30, leading: ['n'], residual: true });
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ['flashllm', 'cpu'] });
  const x = new ort.Tensor('float32', new Float32Array(60), [2, 30]);
  await t.throwsAsync(session.run({ x, residual: new ort.Tensor('float32', new Float32Array(27), [3, 9]) }), {
    code: 'ORT_INVALID_ARGUMENT',
    message: /residual of SparseMatMul node 'sparse' has shape \[3, 9\].*expected \[2, 9\]/,
  });
  await session.release();
});
