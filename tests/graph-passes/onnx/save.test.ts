/** Saving: nothing half-written, inputs untouched, memory bounded. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import test from 'ava';
import { makeNode } from '../../../graph-passes/graph/node.js';
import { exchangeModel } from '../../../graph-passes/onnx/exchange.js';
import { loadModel } from '../../../graph-passes/onnx/load.js';
import { withLock } from '../../../graph-passes/onnx/lock-file.js';
import { encodeModel, onnx, type TensorProto } from '../../../graph-passes/onnx/proto.js';
import { saveModel } from '../../../graph-passes/onnx/save.js';
import { StreamSource } from '../../../graph-passes/onnx/sources.js';
import { TempFile } from '../../../graph-passes/onnx/temp-file.js';
import { setPayload, type TensorSource, tensorBytes } from '../../../graph-passes/onnx/tensor.js';
import { floats, makeModel, noise, tempFolder, value, writeModel } from '../test-model.js';

const sizes = [1, 200, 255, 256, 257, 1024, 40_000];

function modelOf(tensors: TensorProto[]) {
  const nodes = tensors.map(({ name }, i) => makeNode('Identity', [name ?? ''], [`y${i}`]));
  const outputs = tensors.map(({ dims }, i) => value(`y${i}`, 1, (dims ?? []) as number[]));
  return makeModel({ nodes, initializers: tensors, inputs: [], outputs });
}

const tensors = sizes.map((size, i) => floats(`t${i}`, [size], noise(size, i)));

test('every tensor comes back, inline or external, aligned', async (t) => {
  const input = writeModel(modelOf(tensors));
  const output = path.join(tempFolder(), 'sub', 'model.onnx');
  const saved = await saveModel(loadModel(input).proto, { path: output });
  const { proto } = loadModel(output);
  for (const [i, tensor] of (proto.graph?.initializer ?? []).entries()) {
    t.deepEqual(Buffer.from(tensorBytes(tensor)), Buffer.from(tensors[i]?.rawData ?? []), `tensor ${i}`);
  }
  const raw = onnx.ModelProto.decode(readFileSync(output));
  const entries = raw.graph?.initializer?.map(
    (tensor) => new Map(tensor.externalData?.map(({ key, value: text }) => [key, text])),
  );
  const offsets = entries?.filter((entry) => entry.size > 0).map((entry) => Number(entry.get('offset')));
  t.is(offsets?.length, 4);
  t.true(offsets?.every((offset) => offset % 64 === 0));
  t.is((offsets?.at(-1) ?? 1) % 4096, 0);
  t.is(statSync(`${output}_data`).size, saved.dataBytes);
  t.deepEqual(readdirSync(path.dirname(output)).sort(), ['model.onnx', 'model.onnx_data']);
});

test('saving leaves the model in memory as it was', async (t) => {
  const loaded = loadModel(writeModel(modelOf(tensors))).proto;
  const before = structuredClone(loaded.graph?.initializer?.map((tensor) => Buffer.from(tensorBytes(tensor))));
  await saveModel(loaded, { path: path.join(tempFolder(), 'a.onnx') });
  await saveModel(loaded, { path: path.join(tempFolder(), 'b.onnx') });
  t.deepEqual(structuredClone(loaded.graph?.initializer?.map((tensor) => Buffer.from(tensorBytes(tensor)))), before);
});

test('an input is never overwritten', async (t) => {
  const input = writeModel(modelOf(tensors));
  const before = readFileSync(input);
  const { proto, files } = loadModel(input);
  const error = await t.throwsAsync(saveModel(proto, { path: input, inputs: files }));
  t.is(error?.name, 'OutputError');
  t.deepEqual(readFileSync(input), before);
});

test('a folder that was made for a model that did not come goes, one that holds something stays', async (t) => {
  const parent = tempFolder();
  const { proto } = loadModel(writeModel(modelOf(tensors)));
  const signal = AbortSignal.abort(new Error('enough'));
  await t.throwsAsync(saveModel(proto, { path: path.join(parent, 'a', 'b', 'model.onnx'), signal }));
  t.deepEqual(readdirSync(parent), []);
  const abort = new AbortController();
  const onProgress = () => {
    writeFileSync(path.join(parent, 'a', 'note.txt'), 'keep me');
    abort.abort(new Error('enough'));
  };
  const target = path.join(parent, 'a', 'b', 'model.onnx');
  await t.throwsAsync(saveModel(proto, { path: target, signal: abort.signal, onProgress }));
  t.deepEqual(readdirSync(parent), ['a']);
  t.deepEqual(readdirSync(path.join(parent, 'a')), ['note.txt']);
});

test('an abort or an error in the middle leaves nothing, and what was there before stays', async (t) => {
  const folder = tempFolder();
  const target = path.join(folder, 'model.onnx');
  const { proto } = loadModel(writeModel(modelOf(tensors)));
  const abort = new AbortController();
  const aborted = saveModel(proto, {
    path: target,
    signal: abort.signal,
    onProgress: () => abort.abort(new Error('enough')),
  });
  await t.throwsAsync(aborted, { message: 'enough' });
  t.deepEqual(readdirSync(folder), []);

  writeFileSync(target, 'earlier');
  const failing = new StreamSource('failing', 4096, async function* () {
    yield new Uint8Array(2048);
    throw new Error('disk on fire');
  });
  const made = onnx.TensorProto.create({ name: 'made', dataType: 1, dims: [1024] });
  setPayload(made, { kind: 'source', source: failing });
  await t.throwsAsync(saveModel(modelOf([made]), { path: target }), { message: 'disk on fire' });
  t.deepEqual(readdirSync(folder), ['model.onnx']);
  t.is(readFileSync(target, 'utf8'), 'earlier');
});

test('sources of equal key are written once; one that yields too little is an error', async (t) => {
  let calls = 0;
  const source = (length: number) =>
    new StreamSource('block', length, async function* () {
      calls += 1;
      yield new Uint8Array(4096).fill(3);
    });
  const tensor = (name: string, length = 4096) => {
    const made = onnx.TensorProto.create({ name, dataType: 2, dims: [length] });
    setPayload(made, { kind: 'source', source: source(length) });
    return made;
  };
  const target = path.join(tempFolder(), 'model.onnx');
  t.is((await saveModel(modelOf([tensor('a'), tensor('b')]), { path: target })).dataBytes, 4096);
  t.is(calls, 1);
  await t.throwsAsync(saveModel(modelOf([tensor('a', 8192)]), { path: `${target}2` }), {
    message: /4096 bytes, expected 8192/,
  });
  t.false(existsSync(`${target}2`));
});

test('the payloads of a large file stay in it', (t) => {
  const megabytes = 64;
  const bytes = Buffer.alloc(megabytes * 2 ** 20, 1);
  const file = writeModel(
    modelOf([onnx.TensorProto.create({ name: 'big', dataType: 1, dims: [bytes.length / 4], rawData: bytes })]),
  );
  const before = process.memoryUsage().rss;
  const { proto } = loadModel(file);
  t.true(process.memoryUsage().rss - before < (megabytes / 4) * 2 ** 20);
  t.true(encodeModel(proto).length < 1000);
});

/** A model that says which one it is, in its graph and in its data. */
const marked = (mark: number) =>
  modelOf([floats('small', [1], [mark]), floats('large', [1024], Array<number>(1024).fill(mark))]);

/** What the parts of a saved model say. */
function marksOf(file: string): (number | undefined)[] {
  const { proto } = loadModel(file);
  return (proto.graph?.initializer ?? []).map((tensor) => Buffer.from(tensorBytes(tensor)).readFloatLE());
}

test('a folder at the place of an output is an error, and what was there before stays', async (t) => {
  const folder = tempFolder();
  const target = path.join(folder, 'model.onnx');
  mkdirSync(`${target}_data`);
  writeFileSync(target, 'earlier');
  await t.throwsAsync(saveModel(marked(1), { path: target }), { name: 'OutputError', message: /_data is a folder/ });
  t.deepEqual(readdirSync(folder).sort(), ['model.onnx', 'model.onnx_data']);
  t.is(readFileSync(target, 'utf8'), 'earlier');
});

test('where the last step fails, the old graph and its data come back', async (t) => {
  const folder = tempFolder();
  const target = path.join(folder, 'model.onnx');
  await saveModel(marked(1), { path: target });
  for (const failing of ['model', 'data'] as const) {
    const temporary = { model: await TempFile.create(target), data: await TempFile.create(`${target}_data`) };
    for (const file of Object.values(temporary)) await file.seal();
    await temporary[failing].discard();
    await t.throwsAsync(exchangeModel(temporary.model, temporary.data, `${target}_data`), { code: 'ENOENT' });
    for (const file of Object.values(temporary)) await file.discard();
    t.deepEqual(readdirSync(folder).sort(), ['model.onnx', 'model.onnx_data'], failing);
    t.deepEqual(marksOf(target), [1, 1], failing);
  }
});

test('saves to one place at a time never mix their files', async (t) => {
  const target = path.join(tempFolder(), 'model.onnx');
  for (let round = 0; round < 20; round++) {
    const saves = [1, 2, 3].map((mark) => saveModel(marked(mark), { path: target }));
    const results = await Promise.allSettled(saves);
    for (const result of results)
      if (result.status === 'rejected') t.regex(result.reason.message, /another conversion/);
    t.true(results.some(({ status }) => status === 'fulfilled'));
    const [graph, data] = marksOf(target);
    t.is(graph, data);
  }
  t.deepEqual(readdirSync(path.dirname(target)).sort(), ['model.onnx', 'model.onnx_data']);
});

test('the lock of a running process is respected, that of one that is gone taken over', async (t) => {
  const target = path.join(tempFolder(), 'model.onnx');
  const lock = path.join(path.dirname(target), '.model.onnx.lock');
  let text = '';
  await withLock(target, async () => {
    text = readFileSync(lock, 'utf8');
    await t.throwsAsync(saveModel(marked(1), { path: target }), {
      name: 'OutputError',
      message: /another conversion \(process \d+ on .*delete .*\.model\.onnx\.lock/,
    });
  });
  t.deepEqual(readdirSync(path.dirname(target)), []);
  // A process that has this one's number now, but began at another time.
  writeFileSync(lock, text.replace(/\d+$/, '1'));
  await saveModel(marked(2), { path: target });
  t.deepEqual(readdirSync(path.dirname(target)).sort(), ['model.onnx', 'model.onnx_data']);
  writeFileSync(lock, 'who knows');
  await t.throwsAsync(saveModel(marked(3), { path: target }), { message: /\(who knows\)/ });
  t.deepEqual(marksOf(target), [2, 2]);
});

test('a file in the place of a folder is named, and stays', async (t) => {
  const { proto } = loadModel(writeModel(modelOf(tensors)));
  const file = path.join(tempFolder(), 'note.txt');
  writeFileSync(file, 'keep me');
  for (const folder of [file, path.join(file, 'a', 'b')])
    await t.throwsAsync(saveModel(proto, { path: path.join(folder, 'model.onnx') }), {
      name: 'OutputError',
      message: `${file} is a file, where a folder is to be. Name another output folder`,
    });
  t.is(readFileSync(file, 'utf8'), 'keep me');
});

test('what a killed conversion has left of the same output is removed, what a running one writes stays', async (t) => {
  const folder = tempFolder();
  const target = path.join(folder, 'model.onnx');
  const script = `
    import { TempFile } from ${JSON.stringify(path.resolve('graph-passes/onnx/temp-file.ts'))};
    for (const name of ['model.onnx', 'model.onnx_data', 'other.onnx_data'])
      await TempFile.create(${JSON.stringify(folder)} + '/' + name);
    process.kill(process.pid, 'SIGKILL');`;
  const { signal } = spawnSync(process.execPath, ['--import=tsx', '--input-type=module', '-e', script]);
  t.is(signal, 'SIGKILL');
  const left = readdirSync(folder);
  t.is(left.length, 3);
  const running = await TempFile.create(`${target}_data`);
  // Of a process that cannot be seen from here, and what is none of ours.
  const foreign = ['.model.onnx.1-1-00aa11bb22cc.001122334455.tmp', '.model.onnx.001122334455.tmp', '.model.onnx.tmp'];
  for (const name of foreign) writeFileSync(path.join(folder, name), '');
  await saveModel(marked(1), { path: target });
  const other = left.filter((name) => name.startsWith('.other.onnx_data.'));
  const expected = ['model.onnx', 'model.onnx_data', path.basename(running.path), ...foreign, ...other];
  t.deepEqual(readdirSync(folder).sort(), expected.sort());
  await running.discard();
});

/** A tensor whose bytes come from a source. */
function sourced(source: TensorSource): TensorProto {
  const made = onnx.TensorProto.create({ name: 'made', dataType: 2, dims: [source.length] });
  setPayload(made, { kind: 'source', source });
  return made;
}

test('more than there is room for is refused before anything is written, with both sizes', async (t) => {
  const folder = tempFolder();
  const target = path.join(folder, 'sub', 'model.onnx');
  const huge = new StreamSource('huge', 2 ** 50, () => t.fail() as never);
  const error = await t.throwsAsync(saveModel(modelOf([sourced(huge)]), { path: target }), { name: 'OutputError' });
  t.regex(
    error?.message ?? '',
    /cannot write to .*sub\/model\.onnx: it needs 1125899\.9 GB, \d+\.\d [MG]B are free in .*sub; free some, or choose another/,
  );
  t.deepEqual(readdirSync(folder), []);
});

test('an error of writing is told of the output, one of reading of the input', async (t) => {
  const target = path.join(tempFolder(), 'model.onnx');
  const failing = (message: (temporary: string) => Error): TensorSource => ({
    key: 'failing',
    length: 4096,
    placed() {},
    write: async ({ path: temporary }) => {
      throw message(temporary);
    },
  });
  const told = async (message: (temporary: string) => Error) =>
    (await t.throwsAsync(saveModel(modelOf([sourced(failing(message))]), { path: target })))?.message;
  const system = (code: string, text: string, file?: string) =>
    Object.assign(new Error(text), { code, ...(file === undefined ? {} : { path: file }) });
  t.is(
    await told(() => system('ENOSPC', 'ENOSPC: no space left on device, write')),
    `cannot write to ${target}: no space left on device (ENOSPC); choose another folder`,
  );
  t.is(
    await told((file) => system('EROFS', `EROFS: read-only file system, open '${file}'`, file)),
    `cannot write to ${target}: read-only file system (EROFS); choose another folder`,
  );
  // As the packer says it.
  t.is(
    await told((file) => new Error(`cannot write 4096 bytes to ${file}: No space left on device. Free some space`)),
    `cannot write 4096 bytes to ${target}_data: No space left on device. Free some space`,
  );
  const input = path.join(path.dirname(target), 'weights.bin');
  const reading = `EACCES: permission denied, open '${input}'`;
  t.is(await told(() => system('EACCES', reading, input)), reading);
});
