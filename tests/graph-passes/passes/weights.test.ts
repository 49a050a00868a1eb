/** Weights as exporters store them: behind casts and transposes, in Constant nodes, shared, in branches, in any float type. */
import path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import ort from 'onnxruntime-node';
import { makeAttribute, makeNode } from '../../../graph-passes/graph/node.js';
import { inspectModel, type RewriteOptions } from '../../../graph-passes/index.js';
import { loadModel } from '../../../graph-passes/onnx/load.js';
import { type GraphProto, type NodeProto, onnx, type TensorProto } from '../../../graph-passes/onnx/proto.js';
import { saveModel } from '../../../graph-passes/onnx/save.js';
import { payloadOf, setPayload } from '../../../graph-passes/onnx/tensor.js';
import {
  compareAll,
  DATA_TYPE,
  type FloatName,
  floatBytes,
  floats,
  floatTensorOf,
  largestDifference,
  makeModel,
  noise,
  OURS,
  opTypes,
  rewrite,
  run,
  STOCK,
  sparseValues,
  tempFolder,
  value,
  writeModel,
} from '../test-model.js';

const K = 70;
const M = 24;
const TOLERANCE = 150 * 2 ** -22;
/** One rounding of a result below 16 to float16, and one of its parts. */
const HALF_TOLERANCE = 2 ** -6;

const transposed = (values: readonly number[], rows: number, columns: number) =>
  values.map((_, i) => values[(i % rows) * columns + Math.floor(i / rows)] as number);
const outIn = sparseValues(M * K, 0.7, 11);
const inOut = transposed(outIn, M, K);

interface Case {
  nodes: NodeProto[];
  initializers: TensorProto[];
  type?: 'float32' | 'float16';
  opset?: number;
  irVersion?: number;
  options?: Partial<RewriteOptions>;
  out?: number;
}

async function check(t: ExecutionContext, spec: Case) {
  const type = spec.type ?? 'float32';
  const { nodes, initializers, opset = 17, irVersion = 8, options, out = M } = spec;
  const inputs = [value('x', DATA_TYPE[type], ['n', K])];
  const outputs = [value('y', DATA_TYPE[type], ['n', out])];
  const file = writeModel(makeModel({ nodes, initializers, inputs, outputs, opset, irVersion }));
  const report = await rewrite(file, options);
  const feeds = { x: floatTensorOf([3, K], noise(3 * K, 5), type) };
  const difference = await compareAll(file, report.output.path, feeds);
  t.true(difference <= (type === 'float16' ? HALF_TOLERANCE : TOLERANCE), `differs by ${difference}`);
  return report;
}

const matmul = makeNode('MatMul', ['x', 'w'], ['y'], { name: 'layer' });

for (let opset = 13; opset <= 23; opset++) {
  for (const type of ['float32', 'float16'] as const) {
    test(`opset ${opset}, ${type}`, async (t) => {
      const nodes = [
        makeNode('MatMul', ['x', 'w'], ['p']),
        makeNode('Add', ['p', 'b'], ['q']),
        makeNode('Relu', ['q'], ['r']),
        makeNode('MatMul', ['r', 'w2'], ['s']),
        makeNode('Add', ['s', 'r'], ['y']),
      ];
      const initializers = [
        floats('w', [K, M], inOut, type),
        floats('w2', [M, M], sparseValues(M * M, 0.6, 3), type),
        floats('b', [M], noise(M, 4), type),
      ];
      const report = await check(t, { nodes, initializers, type, opset });
      t.deepEqual(opTypes(report.output.path), ['SparseMatMul', 'SparseMatMul']);
    });
  }
}

for (const opset of [7, 11, 12]) {
  test(`opset ${opset}, older than the function's operators: flashllm only`, async (t) => {
    const initializers = [floats('w', [K, M], inOut)];
    const inputs = [value('x', 1, ['n', K])];
    const outputs = [value('y', 1, ['n', M])];
    const file = writeModel(makeModel({ nodes: [matmul], initializers, inputs, outputs, opset, irVersion: 4 }));
    const report = await rewrite(file);
    t.false(report.portable);
    const feeds = { x: floatTensorOf([3, K], noise(3 * K, 5)) };
    const [expected, ours] = [await run(file, STOCK, feeds), await run(report.output.path, OURS, feeds)];
    t.true(largestDifference(expected.y ?? [], ours.y ?? []) <= TOLERANCE);
  });
}

test('IR 3, where every initializer is an input too', async (t) => {
  const inputs = [value('x', 1, ['n', K]), value('w', 1, [K, M]), value('v', 1, [M, M])];
  const model = makeModel({
    nodes: [makeNode('MatMul', ['x', 'w'], ['p']), makeNode('MatMul', ['p', 'v'], ['y'])],
    initializers: [floats('w', [K, M], inOut), floats('v', [M, M], noise(M * M, 2))],
    inputs,
    outputs: [value('y', 1, ['n', M])],
    irVersion: 3,
    opset: 13,
  });
  const file = writeModel(model);
  const report = await rewrite(file, { minSparsity: 0.4 });
  t.true((await compareAll(file, report.output.path, { x: floatTensorOf([3, K], noise(3 * K, 5)) })) <= TOLERANCE * 4);
  const session = await ort.InferenceSession.create(report.output.path);
  t.deepEqual(session.inputNames, ['x']);
  await session.release();
});

test('an initializer that callers may override stays dense', async (t) => {
  const model = makeModel({
    nodes: [matmul],
    initializers: [floats('w', [K, M], inOut)],
    inputs: [value('x', 1, ['n', K]), value('w', 1, [K, M])],
    outputs: [value('y', 1, ['n', M])],
  });
  const report = await rewrite(writeModel(model));
  t.is(report.layers[0]?.decision, 'dense');
  t.regex(report.layers[0]?.reason ?? '', /callers may override/);
});

const half = sparseValues(M * K, 0.7, 11);

const CHAINS: Record<string, Case> = {
  'Transpose of [out, in], as dynamo exports': {
    nodes: [makeNode('Transpose', ['v'], ['w'], { attributes: { perm: [1, 0] } }), matmul],
    initializers: [floats('v', [M, K], outIn)],
  },
  'Transpose without perm, of an Identity': {
    nodes: [makeNode('Identity', ['v'], ['u']), makeNode('Transpose', ['u'], ['w']), matmul],
    initializers: [floats('v', [M, K], outIn)],
  },
  'two Transposes': {
    nodes: [makeNode('Transpose', ['v'], ['u']), makeNode('Transpose', ['u'], ['w']), matmul],
    initializers: [floats('v', [K, M], inOut)],
  },
  'float16 cast to float32': {
    nodes: [makeNode('Cast', ['v'], ['w'], { attributes: { to: 1 } }), matmul],
    initializers: [floats('v', [K, M], half, 'float16')],
  },
  'bfloat16 cast to float32': {
    nodes: [makeNode('Cast', ['v'], ['w'], { attributes: { to: 1 } }), matmul],
    initializers: [floats('v', [K, M], half, 'bfloat16')],
  },
  'float32 rounded to float16 by a Cast': {
    nodes: [
      makeNode('Cast', ['v'], ['u'], { attributes: { to: 10 } }),
      makeNode('Cast', ['u'], ['w'], { attributes: { to: 1 } }),
      matmul,
    ],
    initializers: [floats('v', [K, M], noise(K * M, 9))],
  },
  'a Constant node': {
    nodes: [makeNode('Constant', [], ['w'], { attributes: { value: floats('', [K, M], inOut) } }), matmul],
    initializers: [],
  },
  'typed float_data': {
    nodes: [matmul],
    initializers: [onnx.TensorProto.create({ name: 'w', dims: [K, M], dataType: 1, floatData: inOut })],
  },
  'float16 in int32_data': {
    nodes: [makeNode('Cast', ['v'], ['w'], { attributes: { to: 1 } }), matmul],
    initializers: [
      onnx.TensorProto.create({
        name: 'v',
        dims: [K, M],
        dataType: 10,
        int32Data: Array.from(new Uint16Array(floatBytes(inOut, 'float16').buffer)),
      }),
    ],
  },
};

for (const [name, spec] of Object.entries(CHAINS)) {
  test(`weight: ${name}`, async (t) => {
    const report = await check(t, spec);
    t.deepEqual(opTypes(report.output.path), ['SparseMatMul']);
    const names = (loadModel(report.output.path).proto.graph?.initializer ?? []).map((tensor) => tensor.name);
    t.is(names.length, 3, String(names));
  });
}

/** Through float16 and back, as a model that rounds its own weight does. */
const roundedToHalf = (from: string, to: string) => [
  makeNode('Cast', [from], [`${from}_half`], { attributes: { to: 10 } }),
  makeNode('Cast', [`${from}_half`], [to], { attributes: { to: 1 } }),
];

for (const alpha of [1e-7, 0.3, 1e6]) {
  test(`a weight that is rounded and then multiplied by alpha = ${alpha} stays dense`, async (t) => {
    const gemm = makeNode('Gemm', ['x', 'w'], ['y']);
    gemm.attribute = [{ name: 'alpha', type: onnx.AttributeProto.AttributeType.FLOAT, f: alpha }];
    const initializers = [floats('v', [K, M], noise(K * M, 9))];
    const report = await check(t, { nodes: [...roundedToHalf('v', 'w'), gemm], initializers });
    t.is(report.layers[0]?.decision, 'dense');
    t.regex(report.layers[0]?.reason ?? '', /alpha is .* rounds to float16/);
  });
}

for (const type of ['float32', 'bfloat16'] as const) {
  test(`a ${type} weight of which the model's own Cast overflows stays dense, the others do not`, async (t) => {
    const large = inOut.with(
      inOut.findIndex((weight) => weight !== 0),
      2 ** 20,
    );
    const nodes = [
      ...roundedToHalf('v', 'w'),
      makeNode('MatMul', ['x', 'w'], ['p']),
      makeNode('Sigmoid', ['p'], ['q']),
      makeNode('MatMul', ['q', 'u'], ['y']),
    ];
    const initializers = [floats('v', [K, M], large, type), floats('u', [M, M], sparseValues(M * M, 0.6, 3))];
    const report = await check(t, { nodes, initializers });
    t.deepEqual(
      report.layers.map(({ decision }) => decision),
      ['dense', 'sparse'],
    );
    t.regex(report.layers[0]?.reason ?? '', /casts it to float16, which a value of it overflows/);
  });
}

for (const type of ['float32', 'float16', 'bfloat16'] as FloatName[]) {
  test(`values stored as ${type}`, async (t) => {
    const initializers = [floats('w', [K, M], inOut)];
    const report = await check(t, { nodes: [matmul], initializers, options: { weights: type } });
    t.is(report.layers[0]?.valueType, type);
  });
}

for (const [stored, weights, largest, alpha, reason] of [
  ['float32', 'float16', -65520, 1, /^a value of it overflows float16; choose bfloat16 or float32 values$/],
  ['float32', 'float16', 65519, 1, /rounded to float16/],
  ['bfloat16', 'float16', 2 ** 20, 1, /overflows float16/],
  ['float16', 'float16', 32768, -4, /overflows float16/],
  ['float32', 'float16', 2 ** 20, 2 ** -6, /zeros$/],
  ['float32', 'bfloat16', 3.4e38, 1, /^a value of it overflows bfloat16; choose float32 values$/],
  ['float32', 'bfloat16', 2 ** 20 + 1, 1, /rounded to bfloat16/],
] as const)
  test(`a ${stored} weight of up to ${alpha} · ${largest} as ${weights}: what is said is what is done`, async (t) => {
    const at = inOut.findIndex((weight) => weight !== 0);
    const gemm = makeNode('Gemm', ['x', 'w'], ['y']);
    gemm.attribute = [{ name: 'alpha', type: onnx.AttributeProto.AttributeType.FLOAT, f: alpha }];
    const type = stored === 'float16' ? 'float16' : 'float32';
    const file = writeModel(
      makeModel({
        nodes: [makeNode('Cast', ['v'], ['w'], { attributes: { to: DATA_TYPE[type] } }), gemm],
        initializers: [floats('v', [K, M], inOut.with(at, largest), stored)],
        inputs: [value('x', DATA_TYPE[type], ['n', K])],
        outputs: [value('y', DATA_TYPE[type], ['n', M])],
      }),
    );
    const options = { weights, minSparsity: 0 };
    const inspected = await inspectModel({ ...options, input: file });
    const { layers } = await rewrite(file, options);
    t.deepEqual(layers, inspected.layers);
    t.regex(layers[0]?.reason ?? '', reason);
    t.is(layers[0]?.decision, reason.source.includes('overflows') ? 'dense' : 'sparse');
  });

test('auto takes the smallest type that holds every value exactly', async (t) => {
  const exact = async (values: number[]) => {
    const options = { weights: 'auto' } as const;
    const file = writeModel(
      makeModel({
        nodes: [matmul],
        initializers: [floats('w', [K, M], values)],
        inputs: [value('x', 1, ['n', K])],
        outputs: [value('y', 1, ['n', M])],
      }),
    );
    return (await rewrite(file, options)).layers[0]?.valueType;
  };
  t.is(await exact(inOut), 'float16');
  t.is(await exact(inOut.map((weight) => weight * 2 ** 40)), 'bfloat16');
  t.is(await exact(inOut.map((weight) => weight + 2 ** -20)), 'float32');
});

test('one weight of two layers is packed once', async (t) => {
  const nodes = [
    makeNode('MatMul', ['x', 'w'], ['p']),
    makeNode('Identity', ['w'], ['alias']),
    makeNode('MatMul', ['x', 'alias'], ['q']),
    makeNode('Add', ['p', 'q'], ['y']),
  ];
  const report = await check(t, { nodes, initializers: [floats('w', [K, M], inOut)] });
  t.is(loadModel(report.output.path).proto.graph?.initializer?.length, 3);
});

test('layers whose weights are the same bytes of a file stay so: packed once, dense ones copied once', async (t) => {
  const model = makeModel({
    nodes: ['w0', 'w1', 'w2'].map((w, i) => makeNode('MatMul', [`h${i}`, w], [`h${i + 1}`])),
    initializers: ['w0', 'w1', 'w2'].map((w) => floats(w, [K, K], sparseValues(K * K, 0.5, 1))),
    inputs: [value('h0', 1, ['n', K])],
    outputs: [value('h3', 1, ['n', K])],
  });
  const loaded = loadModel(writeModel(model));
  const [first, ...others] = loaded.proto.graph?.initializer ?? [];
  for (const tensor of others) setPayload(tensor, payloadOf(first as TensorProto));
  const shared = path.join(tempFolder(), 'shared.onnx');
  const saved = await saveModel(loaded.proto, { path: shared });
  t.is(saved.dataBytes, K * K * 4);
  const feeds = { h0: floatTensorOf([3, K], noise(3 * K, 5)) };
  const dense = await rewrite(shared, { minSparsity: 1 });
  t.is(dense.output.dataBytes, K * K * 4);
  const sparse = await rewrite(shared);
  t.is(sparse.bytesBefore, K * K * 4);
  t.true(sparse.output.dataBytes < K * K * 2);
  t.is(loadModel(sparse.output.path).proto.graph?.initializer?.length, 9);
  t.true((await compareAll(shared, sparse.output.path, feeds)) <= TOLERANCE * 100);
});

test('a table that is tied to the output layer keeps its dense copy', async (t) => {
  const model = makeModel({
    nodes: [
      makeNode('Gather', ['table', 'ids'], ['embedded']),
      makeNode('Transpose', ['table'], ['w'], { attributes: { perm: [1, 0] } }),
      makeNode('MatMul', ['embedded', 'w'], ['logits']),
    ],
    initializers: [floats('table', [M, K], outIn)],
    inputs: [value('ids', DATA_TYPE.int64, ['n'])],
    outputs: [value('logits', 1, ['n', M])],
  });
  const file = writeModel(model);
  const feeds = { ids: new ort.Tensor('int64', BigInt64Array.from([3n, 0n, 23n]), [3]) };
  const report = await rewrite(file);
  t.true((await compareAll(file, report.output.path, feeds)) <= TOLERANCE * 8);
  t.deepEqual(opTypes(report.output.path), ['Gather', 'SparseMatMul']);
  const prune = { method: 'magnitude', sparsity: 0.9, scope: 'layer' } as const;
  const pruned = await rewrite(file, { prune, minSparsity: 0.85 });
  t.is(pruned.layers[0]?.decision, 'dense');
  t.regex(pruned.layers[0]?.reason ?? '', /output layer/);
});

/** A decoder of two branches that share the outer graph's weight; one has a weight of its own, and shadows a name. */
function branchModel() {
  const branch = (name: string, nodes: NodeProto[], initializer: TensorProto[]): GraphProto => ({
    name,
    node: nodes,
    initializer,
    output: [value(`${name}_y`, 1, ['n', M])],
  });
  const first = branch(
    'first',
    [makeNode('MatMul', ['x', 'w'], ['p']), makeNode('Add', ['b', 'p'], ['q']), makeNode('Relu', ['q'], ['first_y'])],
    [],
  );
  const second = branch(
    'second',
    [makeNode('MatMul', ['x', 'w'], ['r']), makeNode('MatMul', ['r', 'inner'], ['second_y'])],
    [floats('inner', [M, M], sparseValues(M * M, 0.6, 8))],
  );
  const node = makeNode('If', ['use_cache_branch'], ['y']);
  node.attribute = [
    { ...makeAttribute('then_branch', 0), type: 5, g: first },
    { ...makeAttribute('else_branch', 0), type: 5, g: second },
  ];
  for (const attribute of node.attribute) delete attribute.i;
  return makeModel({
    nodes: [node],
    initializers: [floats('w', [K, M], inOut), floats('b', [M], noise(M, 4))],
    inputs: [value('use_cache_branch', DATA_TYPE.bool, [1]), value('x', 1, ['n', K])],
    outputs: [value('y', 1, ['n', M])],
  });
}

test('the branches of an If are rewritten, a weight of both once', async (t) => {
  const file = writeModel(branchModel());
  const report = await rewrite(file);
  t.is(report.layers.filter(({ decision }) => decision === 'sparse').length, 3);
  t.is(report.fused['fuse-relu'], 1);
  const { graph } = loadModel(report.output.path).proto;
  t.is(graph?.initializer?.length, 4);
  for (const flag of [1, 0]) {
    const feeds = {
      use_cache_branch: new ort.Tensor('bool', Uint8Array.of(flag), [1]),
      x: floatTensorOf([3, K], noise(3 * K, 5)),
    };
    t.true((await compareAll(file, report.output.path, feeds)) <= TOLERANCE * 4, `branch ${flag}`);
  }
});

test('a rewritten model is left alone by a second rewrite', async (t) => {
  const nodes = [makeNode('MatMul', ['x', 'w'], ['p']), makeNode('Relu', ['p'], ['y'])];
  const first = await check(t, { nodes, initializers: [floats('w', [K, M], inOut)] });
  const second = await rewrite(first.output.path);
  t.is(second.layers.length, 1);
  const [before, after] = [first.layers[0], second.layers[0]];
  // The node has no name and goes by its output's, which fusing the ReLU has changed.
  const packed = { name: 'y', weight: 'w_values', bytesBefore: before?.bytesAfter, reason: 'packed already' };
  t.deepEqual(after, { ...before, ...packed } as typeof after);
  t.is(second.bytesBefore, second.bytesAfter);
  t.is(
    (await compareAll(first.output.path, second.output.path, { x: floatTensorOf([3, K], noise(3 * K, 5)) })) <=
      TOLERANCE,
    true,
  );
});
