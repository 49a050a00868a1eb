/** Graphs made to exhaust whoever looks at them: refused or left alone, in no time. */
import test from 'ava';
import { makeAttribute, makeNode } from '../../../graph-passes/graph/node.js';
import { inspectModel } from '../../../graph-passes/index.js';
import { decodeModel, encodeModel, type GraphProto, type NodeProto } from '../../../graph-passes/onnx/proto.js';
import { floats, makeModel, noise, value, writeModel } from '../test-model.js';

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
