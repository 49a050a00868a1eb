/** MatMul and Gemm in every form, against the original model. */
import test from 'ava';
import fc from 'fast-check';
import { makeNode } from '../../../graph-passes/graph/node.js';
import { type NodeProto, onnx, type TensorProto } from '../../../graph-passes/onnx/proto.js';
import {
  compareAll,
  DATA_TYPE,
  floats,
  floatTensorOf,
  makeModel,
  noise,
  opTypes,
  rewrite,
  type Shape,
  sparseValues,
  value,
  writeModel,
} from '../test-model.js';

/** Sums of up to 150 products of magnitude 1 in another order, in float32; the stock function sums as the original does. */
const TOLERANCE = 150 * 2 ** -22;

const float = (name: string, f: number) => ({ name, type: onnx.AttributeProto.AttributeType.FLOAT, f });
const int = (name: string, i: number) => ({ name, type: onnx.AttributeProto.AttributeType.INT, i });

interface GemmCase {
  n: number;
  k: number;
  m: number;
  transA: boolean;
  transB: boolean;
  alpha: number;
  beta: number;
  /** Shape of C: none, or its dims as 1 or full. */
  c: 'none' | 'M' | '1M' | 'N1' | 'NM' | '1' | '11' | 'scalar';
  constantC: boolean;
  constantSide: 'A' | 'B';
  sparsity: number;
  seed: number;
}

const gemmCase: fc.Arbitrary<GemmCase> = fc.record({
  n: fc.integer({ min: 1, max: 5 }),
  k: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom(63, 64, 65, 130)),
  m: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom(31, 64, 70)),
  transA: fc.boolean(),
  transB: fc.boolean(),
  alpha: fc.constantFrom(1, 0.5, 0.7, -2),
  beta: fc.constantFrom(1, 0, 0.3, -1),
  c: fc.constantFrom('none', 'M', '1M', 'N1', 'NM', '1', '11', 'scalar'),
  constantC: fc.boolean(),
  constantSide: fc.constantFrom('A', 'B'),
  sparsity: fc.constantFrom(0, 0.5, 0.9, 1),
  seed: fc.nat(1000),
});

function gemmModel(spec: GemmCase) {
  const { n, k, m, transA, transB, seed } = spec;
  const shapeA = transA ? [k, n] : [n, k];
  const shapeB = transB ? [m, k] : [k, m];
  const shapeC = { none: [], M: [m], '1M': [1, m], N1: [n, 1], NM: [n, m], '1': [1], '11': [1, 1], scalar: [] }[spec.c];
  const constant = spec.constantSide === 'A' ? 'a' : 'b';
  const initializers: TensorProto[] = [];
  const inputs: ReturnType<typeof value>[] = [];
  const feeds: Record<string, ReturnType<typeof floatTensorOf>> = {};
  const add = (name: string, shape: number[], isConstant: boolean, values: number[]) => {
    if (isConstant) initializers.push(floats(name, shape, values));
    else {
      inputs.push(value(name, DATA_TYPE.float32, shape));
      feeds[name] = floatTensorOf(shape, values);
    }
  };
  const size = (shape: number[]) => shape.reduce((x, y) => x * y, 1);
  const weight = (shape: number[]) => sparseValues(size(shape), spec.sparsity, seed);
  add('a', shapeA, constant === 'a', constant === 'a' ? weight(shapeA) : noise(size(shapeA), seed + 1));
  add('b', shapeB, constant === 'b', constant === 'b' ? weight(shapeB) : noise(size(shapeB), seed + 1));
  if (spec.c !== 'none') add('c', shapeC, spec.constantC, noise(size(shapeC), seed + 2));
  const gemm = makeNode('Gemm', ['a', 'b', ...(spec.c === 'none' ? [] : ['c'])], ['y'], { name: 'layer' });
  gemm.attribute = [
    float('alpha', spec.alpha),
    float('beta', spec.beta),
    int('transA', Number(transA)),
    int('transB', Number(transB)),
  ];
  const outputs = [value('y', DATA_TYPE.float32, [n, m])];
  return { model: makeModel({ nodes: [gemm], initializers, inputs, outputs }), feeds };
}

test('Gemm with any alpha, beta, transposes, shape of C and constant side equals SparseMatMul', async (t) => {
  await fc.assert(
    fc.asyncProperty(gemmCase, async (spec) => {
      const { model, feeds } = gemmModel(spec);
      const file = writeModel(model);
      const report = await rewrite(file);
      t.is(report.layers[0]?.decision, 'sparse', report.layers[0]?.reason);
      t.true(opTypes(report.output.path).includes('SparseMatMul'));
      t.false(opTypes(report.output.path).includes('Gemm'));
      const difference = await compareAll(file, report.output.path, feeds);
      return difference <= TOLERANCE * Math.max(1, Math.abs(spec.alpha));
    }),
    { numRuns: 60, seed: 20261122 },
  );
});

const SHAPES_OF_X: Shape[] = [
  ['n', 66],
  [3, 66],
  ['b', 's', 66],
  [1, 2, 3, 66],
];

for (const shape of SHAPES_OF_X) {
  for (const bias of ['none', 'left', 'right', 'row'] as const) {
    test(`MatMul of X [${shape}] with bias ${bias}`, async (t) => {
      const dims = shape.map((dim) => (typeof dim === 'number' ? dim : 2));
      const nodes: NodeProto[] = [makeNode('MatMul', ['x', 'w'], [bias === 'none' ? 'y' : 'product'])];
      if (bias !== 'none') {
        nodes.push(makeNode('Add', bias === 'left' ? ['bias', 'product'] : ['product', 'bias'], ['y']));
      }
      const initializers = [floats('w', [66, 13], sparseValues(66 * 13, 0.7, 5))];
      if (bias !== 'none') initializers.push(floats('bias', bias === 'row' ? [1, 13] : [13], noise(13, 6)));
      const model = makeModel({
        nodes,
        initializers,
        inputs: [value('x', 1, shape)],
        outputs: [value('y', 1, [...shape.slice(0, -1), 13])],
      });
      const file = writeModel(model);
      const report = await rewrite(file);
      t.deepEqual(opTypes(report.output.path), ['SparseMatMul']);
      const feeds = {
        x: floatTensorOf(
          dims,
          noise(
            dims.reduce((a, b) => a * b, 1),
            7,
          ),
        ),
      };
      t.true((await compareAll(file, report.output.path, feeds)) <= TOLERANCE);
    });
  }
}

test('MatMul with the weight on the left of a matrix is transposed around', async (t) => {
  const model = makeModel({
    nodes: [makeNode('MatMul', ['w', 'x'], ['y'])],
    initializers: [floats('w', [13, 66], sparseValues(66 * 13, 0.7, 5))],
    inputs: [value('x', 1, [66, 'n'])],
    outputs: [value('y', 1, [13, 'n'])],
  });
  const file = writeModel(model);
  const report = await rewrite(file);
  t.deepEqual(opTypes(report.output.path), ['Transpose', 'SparseMatMul', 'Transpose']);
  t.true((await compareAll(file, report.output.path, { x: floatTensorOf([66, 3], noise(198, 7)) })) <= TOLERANCE);
});

async function reasonOf(
  nodes: NodeProto[],
  initializers: TensorProto[],
  xShape: Shape,
  yShape: Shape,
): Promise<string> {
  const inputs = [value('x', 1, xShape)];
  const file = writeModel(makeModel({ nodes, initializers, inputs, outputs: [value('y', 1, yShape)] }));
  const report = await rewrite(file);
  return report.layers.length === 1 && report.layers[0]?.decision === 'dense' ? report.layers[0].reason : 'sparse';
}

test('refusals say why', async (t) => {
  const w = floats('w', [6, 4], sparseValues(24, 0.5, 1));
  const matmul = (left: string, right: string) => [makeNode('MatMul', [left, right], ['y'])];
  t.regex(await reasonOf(matmul('x', 'w'), [w], [6], [4]), /X has 1 dimension/);
  t.regex(await reasonOf(matmul('w', 'x'), [w], [4], [6]), /left operand and X has 1 dimensions/);
  t.regex(await reasonOf(matmul('w', 'x'), [w], [2, 4, 3], [2, 6, 3]), /left operand and X has 3 dimensions/);
  const cube = floats('w', [2, 6, 4], sparseValues(48, 0.5, 1));
  t.regex(await reasonOf(matmul('x', 'w'), [cube], [3, 6], [2, 3, 4]), /weight has 3 dimensions/);
  const v = floats('v', [3, 6], noise(18, 2));
  const both = [makeNode('MatMul', ['v', 'w'], ['p']), makeNode('Add', ['p', 'x'], ['y'])];
  t.regex(await reasonOf(both, [w, v], [3, 4], [3, 4]), /both operands are constant/);
  const unknown = [makeNode('Mystery', ['x'], ['m'], { domain: 'my.ops' }), ...matmul('m', 'w')];
  t.regex(await reasonOf(unknown, [w], [3, 6], [3, 4]), /X has an unknown number of dimension/);
});

test('X behind a reduction has the dimensions that the reduction leaves', async (t) => {
  const w = floats('w', [6, 4], sparseValues(24, 0.5, 1));
  const axes = onnx.TensorProto.create({
    name: 'axes',
    dataType: DATA_TYPE.int64,
    dims: [1],
    rawData: new Uint8Array(BigInt64Array.of(-2n).buffer),
  });
  const cases: [op: string, attributes: Record<string, number | number[]>, x: number[], y: Shape, left: RegExp][] = [
    ['ReduceMean', { axes: [0], keepdims: 0 }, [3, 6], [4], /^X has 1 dimension/],
    ['ReduceMean', { axes: [-2], keepdims: 0 }, [2, 3, 6], [2, 4], /^sparse$/],
    ['ReduceMax', { axes: [0] }, [3, 6], [1, 4], /^sparse$/],
    ['ReduceSum', { keepdims: 0 }, [3, 6], [4], /^X has 1 dimension/],
    ['ReduceSum', { keepdims: 0 }, [2, 3, 6], [2, 4], /^sparse$/],
    ['ReduceSum', {}, [2, 3, 6], [2, 1, 4], /^sparse$/],
  ];
  for (const [op, attributes, x, y, left] of cases) {
    const inputs = op === 'ReduceSum' ? ['x', 'axes'] : ['x'];
    const nodes = [makeNode(op, inputs, ['m'], { attributes }), makeNode('MatMul', ['m', 'w'], ['y'])];
    const initializers = [w, ...(op === 'ReduceSum' ? [axes] : [])];
    t.regex(await reasonOf(nodes, initializers, x, y), left, `${op} of [${x}]`);
    const file = writeModel(
      makeModel({ nodes, initializers, inputs: [value('x', 1, x)], outputs: [value('y', 1, y)] }),
    );
    const report = await rewrite(file);
    const feeds = {
      x: floatTensorOf(
        x,
        noise(
          x.reduce((a, b) => a * b, 1),
          7,
        ),
      ),
    };
    t.true((await compareAll(file, report.output.path, feeds)) <= TOLERANCE);
  }
  // Without axes all are reduced, or, where the node says so, none.
  const all = [
    makeNode('ReduceSum', ['x'], ['m'], { attributes: { keepdims: 0 } }),
    makeNode('MatMul', ['m', 'w'], ['y']),
  ];
  t.regex(await reasonOf(all, [w], [3, 6], [4]), /X has 0 dimension/);
  const none = { keepdims: 0, noop_with_empty_axes: 1 };
  const kept = [makeNode('ReduceSum', ['x'], ['m'], { attributes: none }), makeNode('MatMul', ['m', 'w'], ['y'])];
  t.is(await reasonOf(kept, [w], [3, 6], [3, 4]), 'sparse');
});
