/** External data of a model that lies: refused before a byte of it is read. */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { makeNode } from '../../../graph-passes/graph/node.js';
import { loadModel } from '../../../graph-passes/onnx/load.js';
import { encodeModel, onnx, type TensorProto } from '../../../graph-passes/onnx/proto.js';
import { payloadOf, tensorBytes } from '../../../graph-passes/onnx/tensor.js';
import { makeModel, tempFolder, value } from '../test-model.js';

function external(entries: Record<string, string>, overrides: Partial<TensorProto> = {}): TensorProto {
  return onnx.TensorProto.create({
    name: 'w',
    dataType: 1,
    dims: [4, 4],
    dataLocation: onnx.TensorProto.DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, text]) => ({ key, value: text })),
    ...overrides,
  });
}

function place(tensor: TensorProto, folder = tempFolder()): string {
  const inputs = [value('x', 1, ['n', 4])];
  const outputs = [value('y', 1, ['n', 4])];
  const model = makeModel({ nodes: [makeNode('MatMul', ['x', 'w'], ['y'])], initializers: [tensor], inputs, outputs });
  const file = path.join(folder, 'model.onnx');
  writeFileSync(file, encodeModel(model));
  writeFileSync(path.join(folder, 'data.bin'), Buffer.alloc(128, 7));
  return file;
}

test('a range inside the file is a reference to it', (t) => {
  const { proto, files } = loadModel(place(external({ location: 'data.bin', offset: '64', length: '64' })));
  const [tensor] = proto.graph?.initializer ?? [];
  const payload = payloadOf(tensor as TensorProto);
  t.like(payload, { kind: 'file', encoding: 'raw', range: { offset: 64, length: 64 } });
  t.is(tensorBytes(tensor as TensorProto).length, 64);
  t.is(files.length, 2);
});

test('length may be left out', (t) => {
  const { proto } = loadModel(place(external({ location: 'data.bin', offset: '8' })));
  t.like(payloadOf(proto.graph?.initializer?.[0] as TensorProto), { range: { offset: 8, length: 64 } });
});

test('a name may begin with two dots', (t) => {
  const folder = tempFolder();
  writeFileSync(path.join(folder, '..data'), Buffer.alloc(64, 7));
  const { files } = loadModel(place(external({ location: '..data' }), folder));
  t.true(files.some((file) => file.endsWith('..data')));
});

test("a model and its data may be links into one folder, as in Hugging Face's cache", (t) => {
  const blobs = tempFolder();
  const snapshot = tempFolder();
  symlinkSync(place(external({ location: 'data.bin', offset: '64' }), blobs), path.join(snapshot, 'model.onnx'));
  symlinkSync(path.join(blobs, 'data.bin'), path.join(snapshot, 'data.bin'));
  const { proto } = loadModel(path.join(snapshot, 'model.onnx'));
  t.like(payloadOf(proto.graph?.initializer?.[0] as TensorProto), { range: { offset: 64, length: 64 } });
});

const LIES: [name: string, entries: Record<string, string>, message: RegExp][] = [
  ['an absolute path', { location: '/etc/passwd' }, /inside the model's folder/],
  ['a path that climbs out', { location: '../data.bin' }, /inside the model's folder/],
  ['a path that climbs out later', { location: 'a/../../data.bin' }, /inside the model's folder/],
  ['no location', { offset: '0' }, /inside the model's folder/],
  ['a zero byte', { location: 'data.bin\0' }, /inside the model's folder/],
  ['a missing file', { location: 'none.bin' }, /is missing/],
  ['a folder', { location: 'folder' }, /not a file/],
  ['an offset beyond the end', { location: 'data.bin', offset: '129' }, /outside/],
  ['a range beyond the end', { location: 'data.bin', offset: '65', length: '64' }, /outside/],
  ['a range that overflows', { location: 'data.bin', offset: '9007199254740990', length: '64' }, /outside/],
  ['a negative offset', { location: 'data.bin', offset: '-1' }, /outside/],
  ['an offset that is no number', { location: 'data.bin', offset: '0x10' }, /outside/],
  ['an offset of twenty digits', { location: 'data.bin', offset: '99999999999999999999' }, /outside/],
  ['another length than the shape', { location: 'data.bin', length: '32' }, /take 64/],
];

for (const [name, entries, message] of LIES) {
  test(`refused: ${name}`, (t) => {
    const folder = tempFolder();
    mkdirSync(path.join(folder, 'folder'));
    const error = t.throws(() => loadModel(place(external(entries), folder)));
    t.is(error?.name, 'ModelError');
    t.regex(error?.message ?? '', message);
  });
}

test('refused: a link that leads out of the folder', (t) => {
  const folder = tempFolder();
  symlinkSync('/etc/hostname', path.join(folder, 'link.bin'));
  t.throws(() => loadModel(place(external({ location: 'link.bin' }), folder)), {
    message: /outside the model's folder/,
  });
});

test('refused: dims whose product overflows, negative dims', (t) => {
  const entries = { location: 'data.bin' };
  const huge = external(entries, { dims: [2 ** 40, 2 ** 40] });
  t.throws(() => loadModel(place(huge)), { message: /too large/ });
  t.throws(() => loadModel(place(external(entries, { dims: [-1, 4] }))), { message: /dimension -1/ });
});

test('refused: external and inline data at once', (t) => {
  const both = external({ location: 'data.bin' }, { rawData: new Uint8Array(64) });
  t.throws(() => loadModel(place(both)), { message: /carries data too/ });
});

test('refused: inline data of another size than the shape', (t) => {
  for (const length of [60, 2000]) {
    const tensor = onnx.TensorProto.create({ name: 'w', dataType: 1, dims: [4, 4], rawData: new Uint8Array(length) });
    t.throws(() => loadModel(place(tensor)), { message: /take 64/ });
  }
});
