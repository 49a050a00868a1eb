/** What onnx-proto does not know survives: fields of later IR versions and of the future. */
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import onnxProto from 'onnx-proto';
import { makeNode } from '../../../graph-passes/graph/node.js';
import { loadModel } from '../../../graph-passes/onnx/load.js';
import { decodeModel, encodeModel, onnx, unknownFields, unknownString } from '../../../graph-passes/onnx/proto.js';
import { floats, makeModel, rewrite, sparseValues, tempFolder, value, writeModel } from '../test-model.js';

/** A length-delimited field. */
function field(number: number, ...parts: (Uint8Array | string)[]): Buffer {
  const body = Buffer.concat(parts.map((part) => Buffer.from(part as string)));
  return Buffer.concat([varint(number * 8 + 2), varint(body.length), body]);
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  for (; rest > 127; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
  return Buffer.from([...bytes, rest]);
}

const entry = (key: string, text: string) => Buffer.concat([field(1, key), field(2, text)]);

/** An IR 11 model: metadata_props everywhere, an overloaded function, device configurations, fields from the future. */
function modernModel(): Buffer {
  const encode = (type: { encode(message: object): { finish(): Uint8Array } }, message: object) =>
    type.encode(message).finish();
  const future = [
    Buffer.concat([varint(1000 * 8 + 0), varint(300)]),
    Buffer.concat([varint(1001 * 8 + 1), Buffer.from([1, 2, 3, 4, 5, 6, 7, 8])]),
    Buffer.concat([varint(1002 * 8 + 5), Buffer.from([9, 8, 7, 6])]),
    field(1003, 'from the future'),
    Buffer.concat([varint(1004 * 8 + 3), field(1, 'in a group'), varint(1004 * 8 + 4)]),
  ];
  const { NodeProto, TensorProto, ValueInfoProto, GraphProto, ModelProto, FunctionProto } = onnxProto.onnx;
  const matmul = field(
    1,
    encode(NodeProto, makeNode('MatMul', ['x', 'w'], ['p'], { name: 'layer' })),
    field(9, entry('pkg.torch.onnx.name_scopes', '["model","layer"]')),
  );
  const call = field(
    1,
    encode(NodeProto, makeNode('Twice', ['p'], ['y'], { domain: 'local' })),
    field(8, 'loud'),
    field(9, entry('note', 'a call')),
    field(10, 'device configuration'),
    ...future,
  );
  const tensor = field(
    5,
    encode(TensorProto, floats('kept', [2, 2], [1, 2, 3, 4])),
    field(16, entry('origin', 'here')),
  );
  const weight = field(5, encode(TensorProto, floats('w', [8, 8], sparseValues(64, 0.5, 1))));
  const info = (number: number, name: string) =>
    field(number, encode(ValueInfoProto, value(name, 1, ['n', 8])), field(4, entry('about', name)));
  const graph = field(
    7,
    encode(GraphProto, { name: 'graph' }),
    matmul,
    call,
    tensor,
    weight,
    info(11, 'x'),
    info(12, 'y'),
    field(16, entry('graph', 'metadata')),
  );
  const fn = field(
    25,
    encode(FunctionProto, {
      name: 'Twice',
      domain: 'local',
      input: ['a'],
      output: ['b'],
      node: [makeNode('Add', ['a', 'a'], ['b'])],
      opsetImport: [{ domain: '', version: 18 }],
    }),
    field(13, 'loud'),
    field(14, entry('function', 'metadata')),
  );
  const opsets = [
    { domain: '', version: 18 },
    { domain: 'local', version: 1 },
  ];
  const head = encode(ModelProto, { irVersion: 11, opsetImport: opsets });
  return Buffer.concat([head, graph, fn, field(26, 'configuration'), ...future]);
}

/** What is to be found in the bytes of the rewritten file. */
const TEXTS = [
  'from the future',
  'in a group',
  'loud',
  'a call',
  'device configuration',
  '["model","layer"]',
  'configuration',
  'graph',
  'metadata',
];

test('decoding and encoding gives the same message, unknown fields included', (t) => {
  const bytes = modernModel();
  const model = decodeModel(bytes);
  const again = encodeModel(model);
  t.is(again.length, bytes.length);
  t.deepEqual(decodeModel(again), model);
  t.is(unknownString(model.graph?.node?.[1] ?? {}, 8), 'loud');
  t.deepEqual(
    unknownFields(model).map(({ field: number }) => number),
    [26, 1000, 1001, 1002, 1003, 1004],
  );
});

test('a rewritten model keeps what onnx-proto does not know', async (t) => {
  const file = path.join(tempFolder(), 'modern.onnx');
  writeFileSync(file, modernModel());
  const report = await rewrite(file, { minSparsity: 0.3 });
  t.is(report.layers[0]?.decision, 'sparse');
  const bytes = readFileSync(report.output.path);
  for (const text of TEXTS) t.true(bytes.includes(text), text);
  const { proto } = loadModel(report.output.path);
  const [sparse, call] = proto.graph?.node ?? [];
  t.is(sparse?.opType, 'SparseMatMul');
  t.is(sparse?.name, 'layer');
  t.true(unknownFields(sparse ?? {}).some(({ field: number }) => number === 9));
  t.is(unknownString(call ?? {}, 8), 'loud');
  t.deepEqual(
    unknownFields(call ?? {}).map(({ field: number }) => number),
    [8, 9, 10, 1000, 1001, 1002, 1003, 1004],
  );
  t.is(Number(proto.irVersion), 11);
});

test('others who use onnx-proto see no change', (t) => {
  const model = onnx.ModelProto.decode(modernModel());
  t.is(unknownFields(model).length, 0);
  t.is(unknownFields(model.graph?.node?.[1] ?? {}).length, 0);
});

test('bytes that are no model are refused, never crash', (t) => {
  const file = path.join(tempFolder(), 'broken.onnx');
  const valid = modernModel();
  fc.assert(
    fc.property(fc.nat(valid.length - 1), fc.nat(255), fc.boolean(), (at, byte, cut) => {
      const bytes = Buffer.from(valid);
      bytes[at] = byte;
      writeFileSync(file, cut ? bytes.subarray(0, at) : bytes);
      try {
        loadModel(file);
      } catch (error) {
        return (error as Error).name === 'ModelError';
      }
      return true;
    }),
    { numRuns: 600, seed: 7 },
  );
  t.pass();
});

test('a model that is written and loaded stays runnable text for text', (t) => {
  const model = makeModel({ nodes: [], initializers: [], inputs: [], outputs: [] });
  t.deepEqual(encodeModel(loadModel(writeModel(model)).proto), encodeModel(model));
});
