/** What may and what may not be taken into a SparseMatMul. */
import path from 'node:path';
import test from 'ava';
import { makeNode } from '../../../graph-passes/graph/node.js';
import { loadModel } from '../../../graph-passes/onnx/load.js';
import type { NodeProto, TensorProto } from '../../../graph-passes/onnx/proto.js';
import { saveModel } from '../../../graph-passes/onnx/save.js';
import {
  compareAll,
  floats,
  floatTensorOf,
  makeModel,
  noise,
  opTypes,
  rewrite,
  type Shape,
  sparseValues,
  tempFolder,
  value,
  writeModel,
} from '../test-model.js';

const TOLERANCE = 150 * 2 ** -22;
const K = 16;

const weight = (name: string) => floats(name, [K, K], sparseValues(K * K, 0.7, name.length + 3));

interface Case {
  nodes: NodeProto[];
  initializers?: TensorProto[];
  x?: Shape;
  outputs?: string[];
}

/** Rewrites, compares with the original in both kinds of session, and returns the op types of the result. */
async function opsOf(
  t: { true(value: boolean): void },
  { nodes, initializers = [], x = ['b', 's', K], outputs = ['y'] }: Case,
) {
  const model = makeModel({
    nodes,
    initializers: [weight('w'), ...initializers],
    inputs: [value('x', 1, x)],
    outputs: outputs.map((name) => value(name, 1, x)),
  });
  const file = writeModel(model);
  const report = await rewrite(file);
  const dims = x.map((dim) => (typeof dim === 'number' ? dim : 2));
  const feeds = {
    x: floatTensorOf(
      dims,
      noise(
        dims.reduce((a, b) => a * b, 1),
        3,
      ),
    ),
  };
  t.true((await compareAll(file, report.output.path, feeds)) <= TOLERANCE);
  return opTypes(report.output.path)
    .filter((op) => op !== 'Constant')
    .join(' ');
}

const matmul = makeNode('MatMul', ['x', 'w'], ['p']);
const bias = floats('b', [K], noise(K, 9));

test('bias, Relu and residual of the same shape go in', async (t) => {
  const nodes = [
    matmul,
    makeNode('Add', ['b', 'p'], ['q']),
    makeNode('Relu', ['q'], ['r']),
    makeNode('Add', ['x', 'r'], ['y']),
  ];
  t.is(await opsOf(t, { nodes, initializers: [bias] }), 'SparseMatMul');
});

test('a bias that is computed goes in where its shape is known', async (t) => {
  const half = floats('b16', [K], noise(K, 9), 'float16');
  const cast = makeNode('Cast', ['b16'], ['b'], { attributes: { to: 1 } });
  const nodes = [cast, matmul, makeNode('Add', ['p', 'b'], ['y'])];
  t.is(await opsOf(t, { nodes, initializers: [half] }), 'Cast SparseMatMul');
});

test('a residual before Relu stays out of it, the Relu too', async (t) => {
  const nodes = [matmul, makeNode('Add', ['p', 'x'], ['q']), makeNode('Relu', ['q'], ['y'])];
  t.is(await opsOf(t, { nodes }), 'SparseMatMul Relu');
});

test('a second bias stays an Add', async (t) => {
  const nodes = [matmul, makeNode('Add', ['b', 'p'], ['q']), makeNode('Add', ['q', 'b'], ['y'])];
  t.is(await opsOf(t, { nodes, initializers: [bias] }), 'SparseMatMul Add');
});

test('a product that is a graph output, or used twice, is not taken in', async (t) => {
  t.is(await opsOf(t, { nodes: [matmul, makeNode('Relu', ['p'], ['y'])], outputs: ['p', 'y'] }), 'SparseMatMul Relu');
  const twice = [matmul, makeNode('Relu', ['p'], ['q']), makeNode('Add', ['p', 'q'], ['y'])];
  t.is(await opsOf(t, { nodes: twice }), 'SparseMatMul Relu Add');
});

test('addends that broadcast are no residual', async (t) => {
  const row = floats('b', [2, K], noise(2 * K, 9));
  const nodes = [matmul, makeNode('Add', ['p', 'b'], ['y'])];
  t.is(await opsOf(t, { nodes, initializers: [row], x: [1, 2, K] }), 'SparseMatMul Add');
  const scalar = floats('b', [1], [0.5]);
  t.is(await opsOf(t, { nodes, initializers: [scalar] }), 'SparseMatMul Add');
});

test('sizes that are written as -1 may differ', async (t) => {
  const model = makeModel({
    nodes: [matmul, makeNode('Add', ['p', 'r'], ['y'])],
    initializers: [weight('w')],
    inputs: [value('x', 1, [-1, K]), value('r', 1, [-1, K])],
    outputs: [value('y', 1, [-1, K])],
  });
  const file = writeModel(model);
  const report = await rewrite(file);
  t.deepEqual(opTypes(report.output.path), ['SparseMatMul', 'Add']);
  const feeds = { x: floatTensorOf([3, K], noise(3 * K, 3)), r: floatTensorOf([1, K], noise(K, 4)) };
  t.true((await compareAll(file, report.output.path, feeds)) <= TOLERANCE);
});

test('a product added to itself keeps its Add', async (t) => {
  t.is(await opsOf(t, { nodes: [matmul, makeNode('Add', ['p', 'p'], ['y'])] }), 'SparseMatMul Add');
});

test('shapes are followed through the two-dimensional form of a feed-forward block', async (t) => {
  const int64 = (name: string, values: number[]) => ({
    name,
    dataType: 7,
    dims: [values.length],
    rawData: new Uint8Array(BigInt64Array.from(values.map(BigInt)).buffer),
  });
  const nodes = [
    makeNode('Shape', ['x'], ['shape']),
    makeNode('Reshape', ['x', 'flat'], ['rows']),
    makeNode('MatMul', ['rows', 'w'], ['p']),
    makeNode('Add', ['rows', 'p'], ['sum']),
    makeNode('Reshape', ['sum', 'shape'], ['z']),
    makeNode('MatMul', ['z', 'w'], ['q']),
    makeNode('Add', ['q', 'x'], ['y']),
  ];
  t.is(
    await opsOf(t, { nodes, initializers: [int64('flat', [-1, K])] }),
    'Shape Reshape SparseMatMul Reshape SparseMatMul',
  );
});

test('nothing goes into a SparseMatMul that the model came with: its function knows no further input', async (t) => {
  const dense = makeModel({
    nodes: [matmul],
    initializers: [weight('w')],
    inputs: [value('x', 1, ['n', K])],
    outputs: [value('p', 1, ['n', K])],
  });
  const packed = (await rewrite(writeModel(dense))).output.path;
  const behind = {
    Relu: [makeNode('Relu', ['p'], ['y'])],
    bias: [makeNode('Add', ['p', 'b'], ['y'])],
    residual: [makeNode('Add', ['p', 'x'], ['y'])],
  };
  for (const [name, nodes] of Object.entries(behind)) {
    const { proto } = loadModel(packed);
    if (!proto.graph) throw new Error('the model has a graph');
    proto.graph.node = [...(proto.graph.node ?? []), ...nodes];
    proto.graph.initializer = [...(proto.graph.initializer ?? []), bias];
    proto.graph.output = [value('y', 1, ['n', K])];
    const edited = path.join(tempFolder(), 'model.onnx');
    await saveModel(proto, { path: edited });
    const report = await rewrite(edited);
    t.deepEqual(report.fused, { 'fuse-bias': 0, 'fuse-relu': 0, 'fuse-residual': 0 }, name);
    t.true((await compareAll(edited, report.output.path, { x: floatTensorOf([3, K], noise(3 * K, 3)) })) <= TOLERANCE);
  }
});

test('ops of the same name in another domain are not taken in', async (t) => {
  const shape: Shape = ['n', K];
  for (const [op, inner, input] of [
    ['Relu', 'Neg', ['p']],
    ['Add', 'Sub', ['p', 'b']],
    ['Add', 'Sub', ['p', 'x']],
  ] as const) {
    const parameters = input.map((_, i) => `in${i}`);
    const model = {
      ...makeModel({
        nodes: [matmul, makeNode(op, [...input], ['y'], { domain: 'my.ops' })],
        initializers: [weight('w'), bias],
        inputs: [value('x', 1, shape)],
        outputs: [value('y', 1, shape)],
      }),
      opsetImport: [
        { domain: '', version: 17 },
        { domain: 'my.ops', version: 1 },
      ],
      functions: [
        {
          name: op,
          domain: 'my.ops',
          input: parameters,
          output: ['out'],
          node: [makeNode(inner, parameters, ['out'])],
          opsetImport: [{ domain: '', version: 17 }],
        },
      ],
    };
    const file = writeModel(model);
    const report = await rewrite(file);
    t.deepEqual(opTypes(report.output.path), ['SparseMatMul', op]);
    t.true((await compareAll(file, report.output.path, { x: floatTensorOf([3, K], noise(3 * K, 3)) })) <= TOLERANCE);
  }
});
