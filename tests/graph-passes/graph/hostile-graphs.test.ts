/** Graphs made to exhaust whoever looks at them: refused or left alone, in no time. */
import { readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { makeAttribute, makeNode } from '../../../graph-passes/graph/node.js';
import { inspectModel } from '../../../graph-passes/index.js';
import { loadModel } from '../../../graph-passes/onnx/load.js';
import { decodeModel, encodeModel, type GraphProto, type NodeProto, onnx } from '../../../graph-passes/onnx/proto.js';
import { FLOAT16 } from '../../../graph-passes/onnx/tensor.js';
import { floats, makeModel, noise, opTypes, rewrite, tempFolder, value, writeModel } from '../test-model.js';

const weight = floats('w', [8, 8], noise(64, 1));

async function inspect(nodes: NodeProto[], initializers = [weight]) {
  const inputs = [value('x', 1, ['n', 8]), value('ids', 7, ['a', 'b'])];
  const started = performance.now();
  const report = await inspectModel({ input: writeModel(makeModel({ nodes, initializers, inputs, outputs: [] })) });
  return { layers: report.layers, seconds: (performance.now() - started) / 1000 };
}

const chain = (op: string, first: string, attributes = {}) =>
  Array.from({ length: 60 }, (_, i) => {
    const input = i === 0 ? first : `${op}${i - 1}`;
    return makeNode(op, [input, input], [`${op}${i}`], { attributes });
  });

test('shapes and sizes that double with every node', async (t) => {
  const nodes = [
    ...chain('Concat', 'x', { axis: 0 }),
    ...chain('Gather', 'ids'),
    makeNode('Shape', ['x'], ['shape']),
    ...chain('Concat', 'shape', { axis: 0 }).map((node) => ({
      ...node,
      input: node.input?.map((name) => name.replace('Concat', 'Values')) ?? [],
      output: node.output?.map((name) => name.replace('Concat', 'Values')) ?? [],
    })),
    makeNode('Gather', ['shape', 'zero'], ['size']),
    ...chain('Add', 'size'),
    ...chain('Mul', 'size'),
  ];
  const zero = { name: 'zero', dataType: 7, dims: [1], rawData: new Uint8Array(8) };
  const { layers, seconds } = await inspect(nodes, [weight, zero as never]);
  t.deepEqual(layers, []);
  t.true(seconds < 5, `${seconds} s`);
});

test('a weight that is made of itself', async (t) => {
  const nodes = [
    makeNode('Identity', ['a'], ['b']),
    makeNode('Transpose', ['b'], ['a']),
    makeNode('MatMul', ['x', 'a'], ['y']),
  ];
  t.deepEqual((await inspect(nodes)).layers, []);
});

test('a value that two nodes make', async (t) => {
  const nodes = [makeNode('Identity', ['x'], ['y']), makeNode('Relu', ['x'], ['y'])];
  await t.throwsAsync(inspect(nodes), { name: 'ModelError', message: /'y' is made by two nodes/ });
});

test('an initializer that stands twice, of which ORT takes the first', async (t) => {
  const nodes = [makeNode('MatMul', ['x', 'w'], ['y'])];
  const twice = [weight, floats('w', [8, 8], noise(64, 2))];
  await t.throwsAsync(inspect(nodes, twice), { name: 'ModelError', message: /two initializers .* the name 'w'/ });
});

test('graphs nested a hundred deep', (t) => {
  let graph: GraphProto = { name: 'innermost', node: [] };
  for (let i = 0; i < 100; i++) {
    const node = makeNode('If', ['x'], ['y']);
    node.attribute = [{ ...makeAttribute('then_branch', 'x'), type: 5, g: graph }];
    graph = { name: `level ${i}`, node: [node] };
  }
  const bytes = encodeModel({ irVersion: 8, graph } as never);
  t.throws(() => decodeModel(bytes), { name: 'ModelError' });
});

test.serial('a chain of 30,000 nodes that loses its use', async (t) => {
  const length = 30_000;
  const identities = Array.from({ length }, (_, i) => makeNode('Identity', [i === 0 ? 'c' : `c${i - 1}`], [`c${i}`]));
  const gemm = makeNode('Gemm', ['x', 'w', `c${length - 1}`], ['y']);
  gemm.attribute = [{ name: 'beta', type: onnx.AttributeProto.AttributeType.FLOAT, f: 0 }];
  const model = makeModel({
    nodes: [...identities, gemm],
    initializers: [weight, floats('c', [8], noise(8, 2))],
    inputs: [value('x', 1, ['n', 8])],
    outputs: [value('y', 1, ['n', 8])],
  });
  t.deepEqual(opTypes((await rewrite(writeModel(model))).output.path), ['SparseMatMul']);
});

test.serial('millions of fields of two bytes', (t) => {
  const file = path.join(tempFolder(), 'model.onnx');
  writeFileSync(file, Buffer.alloc(10_000_002, 8));
  t.throws(() => loadModel(file), { name: 'ModelError', message: /more than 5000000 fields/ });
});

/** A protobuf field: its number, and the bytes of what it holds. */
function field(number: number, ...content: Uint8Array[]): Buffer {
  const body = Buffer.concat(content);
  const length: number[] = [];
  for (let rest = body.length; ; rest = Math.floor(rest / 128)) {
    length.push(rest >= 128 ? (rest % 128) | 128 : rest);
    if (rest < 128) break;
  }
  return Buffer.concat([Buffer.from([number * 8 + 2]), Buffer.from(length), body]);
}

const manyFields: Record<string, Buffer> = {
  'millions of numbers in an attribute': field(7, field(1, field(5, field(8, Buffer.alloc(5_000_001))))),
  'millions of dimensions of a tensor': field(7, field(5, field(1, Buffer.alloc(5_000_001)))),
  'millions of dimensions of an input': field(
    7,
    field(11, field(2, field(1, field(2, Buffer.alloc(10_000_002, field(1)))))),
  ),
  'millions of empty attributes in small nodes': field(
    7,
    Buffer.concat(Array<Buffer>(42_000).fill(field(1, ...Array<Buffer>(120).fill(field(5))))),
  ),
};
for (const [what, bytes] of Object.entries(manyFields)) {
  test.serial(what, (t) => {
    const file = path.join(tempFolder(), 'model.onnx');
    writeFileSync(file, bytes);
    t.throws(() => loadModel(file), { name: 'ModelError', message: /more than 5000000 fields/ });
  });
}

test.serial('a tensor of four elements with a megabyte of varints', (t) => {
  const shape = { name: 's', dims: [4], dataType: 7, int64Data: Array.from({ length: 1_000_000 }, () => 1) };
  const model = makeModel({
    nodes: [makeNode('Reshape', ['x', 's'], ['y'])],
    initializers: [shape as never],
    inputs: [value('x', 1, ['n', 8])],
    outputs: [value('y', 1, ['n', 8])],
  });
  t.throws(() => loadModel(writeModel(model)), {
    name: 'ModelError',
    message: /tensor 's' has 1000000 bytes of varints for 4 elements/,
  });
});

const lyingTensors: Record<string, [object, RegExp]> = {
  'raw data too short, and a typed field beside it': [
    { dataType: 1, rawData: Buffer.alloc(4096), int64Data: [1] },
    /tensor 'w' has its elements in 2 places, expected one/,
  ],
  'raw data too short': [{ dataType: 1, rawData: Buffer.alloc(4096) }, /4096 bytes, but 4096 elements .* take 16384/],
  'two typed fields': [
    { dataType: 1, floatData: Array(4096).fill(1), int32Data: [1] },
    /tensor 'w' has its elements in 2 places/,
  ],
  'floats of a type of two bytes': [
    { dataType: FLOAT16, floatData: Array(2048).fill(1) },
    /tensor 'w' of float16 has its elements in floatData, of another type/,
  ],
  'external data, and a typed field': [
    { dataType: 1, dataLocation: 1, externalData: [{ key: 'location', value: 'w.bin' }], floatData: [1] },
    /tensor 'w' has its elements in 2 places/,
  ],
};
for (const [what, [parts, message]] of Object.entries(lyingTensors)) {
  test.serial(`a weight of ${what}`, (t) => {
    const model = makeModel({
      nodes: [makeNode('MatMul', ['x', 'w'], ['y'])],
      initializers: [{ name: 'w', dims: [64, 64], ...parts } as never],
      inputs: [value('x', 1, ['n', 64])],
      outputs: [value('y', 1, ['n', 64])],
    });
    t.throws(() => loadModel(writeModel(model)), { name: 'ModelError', message });
  });
}

test.serial('an input of 100,000 dimensions and thousands of nodes that add it to itself', async (t) => {
  const nodes = Array.from({ length: 5000 }, (_, i) => makeNode('Add', ['x', 'x'], [`y${i}`]));
  const began = performance.now();
  const model = makeModel({
    nodes,
    initializers: [],
    inputs: [value('x', 1, Array<number>(100_000).fill(1))],
    outputs: [value('y0', 1, ['n'])],
  });
  t.deepEqual((await inspectModel({ input: writeModel(model) })).layers, []);
  // Computed for each node, the shape alone would take minutes.
  t.true(performance.now() - began < 30_000);
});

test('a Gemm whose alpha is infinite stays as it is, and others are rewritten', async (t) => {
  const gemm = makeNode('Gemm', ['x', 'w'], ['h']);
  gemm.attribute = [
    { name: 'alpha', type: onnx.AttributeProto.AttributeType.FLOAT, f: Number.POSITIVE_INFINITY },
    { name: 'transB', type: onnx.AttributeProto.AttributeType.INT, i: 1 as never },
  ];
  const model = makeModel({
    nodes: [gemm, makeNode('MatMul', ['h', 'w'], ['y'])],
    initializers: [weight],
    inputs: [value('x', 1, ['n', 8])],
    outputs: [value('y', 1, ['n', 8])],
  });
  t.deepEqual(opTypes((await rewrite(writeModel(model))).output.path), ['Gemm', 'SparseMatMul']);
});

test('a model of two graphs, of which every decoder makes something else', (t) => {
  const graph = (name: string) =>
    encodeModel(makeModel({ nodes: [], initializers: [floats(name, [8, 8], noise(64, 1))], inputs: [], outputs: [] }));
  const file = path.join(tempFolder(), 'model.onnx');
  writeFileSync(file, Buffer.concat([graph('a'), graph('b')]));
  t.throws(() => loadModel(file), { name: 'ModelError', message: /the model at byte 0 has a second graph/ });
});

test.serial('a weight of fewer elements than its shape is refused, and no file stays open', async (t) => {
  const short = { name: 'w', dims: [32, 32], dataType: FLOAT16, int32Data: Array.from({ length: 1000 }, () => 1) };
  const model = makeModel({
    nodes: [makeNode('MatMul', ['x', 'w'], ['y'])],
    initializers: [short as never],
    inputs: [value('x', FLOAT16, ['n', 32])],
    outputs: [value('y', FLOAT16, ['n', 32])],
  });
  await t.throwsAsync(rewrite(writeModel(model)), {
    name: 'ModelError',
    message: /has 2000 bytes of elements, its shape 2048/,
  });
  const open = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      // The listing's own.
      return '';
    }
  });
  t.deepEqual(
    open.filter((file) => file.includes('weight-')),
    [],
  );
});

test.serial('40,000 layers that share a weight and an input', async (t) => {
  const nodes = Array.from({ length: 40_000 }, (_, i) => makeNode('MatMul', ['x', 'w'], [`y${i}`]));
  const inputs = [value('x', 1, ['n', 8])];
  const file = writeModel(makeModel({ nodes, initializers: [weight], inputs, outputs: [value('y0', 1, ['n', 8])] }));
  const started = performance.now();
  const ops = opTypes((await rewrite(file)).output.path);
  const seconds = (performance.now() - started) / 1000;
  t.deepEqual([ops.length, ...new Set(ops)], [nodes.length, 'SparseMatMul']);
  t.true(seconds < 20, `${seconds} s`);
});
