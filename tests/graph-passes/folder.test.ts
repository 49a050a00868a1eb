/** Folders of models: what goes along with them, and what must not be written over. */
import fs, { chmodSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import path from 'node:path';
import test from 'ava';
import { makeNode } from '../../graph-passes/graph/node.js';
import { rewriteFolder } from '../../graph-passes/index.js';
import { floats, makeModel, opTypes, sparseValues, tempFolder, value, writeModel } from './test-model.js';

const K = 32;

function linear(seed: number) {
  return makeModel({
    nodes: [makeNode('MatMul', ['x', 'w'], ['y'])],
    initializers: [floats('w', [K, K], sparseValues(K * K, 0.7, seed))],
    inputs: [value('x', 1, ['n', K])],
    outputs: [value('y', 1, ['n', K])],
  });
}

const rewriteInto = (input: string, output: string) => rewriteFolder({ input, output, minSparsity: 0 });

/** Every file below a folder with its content. */
function contents(folder: string): Record<string, string> {
  const names = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return Object.fromEntries(
    names.map(({ parentPath, name }) => {
      const file = path.join(parentPath, name);
      return [path.relative(folder, file), readFileSync(file, 'base64')];
    }),
  );
}

test('an output that is another input of the folder is refused before anything is written', async (t) => {
  const folder = tempFolder();
  mkdirSync(path.join(folder, 'onnx'));
  writeModel(linear(1), folder, 'a.onnx');
  writeModel(linear(2), folder, 'model.onnx');
  writeModel(linear(3), path.join(folder, 'onnx'));
  const before = contents(folder);
  await t.throwsAsync(rewriteInto(folder, path.join(folder, 'onnx')), {
    name: 'OutputError',
    message: /onnx\/model\.onnx is an input of this conversion/,
  });
  t.deepEqual(contents(folder), before);
  const link = path.join(tempFolder(), 'link');
  symlinkSync(folder, link);
  await t.throwsAsync(rewriteInto(folder, link), { name: 'OutputError' });
  t.deepEqual(contents(folder), before);
});

test('a model with the name of a companion is rewritten all the same', async (t) => {
  const folder = tempFolder();
  writeModel(linear(1), folder, 'tokenizer.onnx');
  writeFileSync(path.join(folder, 'tokenizer.onnx_data'), 'of another model');
  writeFileSync(path.join(folder, 'tokenizer.model'), 'words');
  const output = path.join(tempFolder(), 'out');
  await rewriteInto(folder, output);
  t.deepEqual(opTypes(path.join(output, 'tokenizer.onnx')), ['SparseMatMul']);
  t.deepEqual(readdirSync(output).sort(), ['tokenizer.model', 'tokenizer.onnx', 'tokenizer.onnx_data']);
});

test.serial('each graph of a folder is read once, and all of them before anything is written', async (t) => {
  const folder = tempFolder();
  const output = path.join(tempFolder(), 'out');
  const files = ['a.onnx', 'b.onnx'].map((name, i) => writeModel(linear(i + 1), folder, name));
  const { openSync } = fs;
  const read: string[] = [];
  fs.openSync = (...args) => {
    read.push(String(args[0]));
    return openSync(...args);
  };
  syncBuiltinESMExports();
  try {
    await rewriteInto(folder, output);
  } finally {
    fs.openSync = openSync;
    syncBuiltinESMExports();
  }
  t.deepEqual(
    read.filter((file) => files.includes(file)),
    files,
  );
  t.deepEqual(opTypes(path.join(output, 'b.onnx')), ['SparseMatMul']);

  writeFileSync(path.join(folder, 'c.onnx'), 'a letter, not a model');
  const other = path.join(tempFolder(), 'other');
  await t.throwsAsync(rewriteInto(folder, other), { name: 'ModelError', message: /c\.onnx: .*no ONNX model/ });
  t.false(fs.existsSync(other));
});

for (const [name, text] of Object.entries({ 'no JSON': '{bad', 'no object': 'null', 'a list': '[]' })) {
  test(`a config.json that is ${name} is an error that names it, before anything is written`, async (t) => {
    const folder = tempFolder();
    writeModel(linear(1), folder);
    writeFileSync(path.join(folder, 'config.json'), text);
    const output = path.join(folder, 'out');
    await t.throwsAsync(rewriteInto(folder, output), { name: 'ModelError', message: /config\.json (is no|must hold)/ });
    t.deepEqual(readdirSync(folder).sort(), ['config.json', 'model.onnx']);
  });
}

test('a companion that leads out of the folder is refused', async (t) => {
  const folder = tempFolder();
  const secret = path.join(tempFolder(), 'secret');
  writeFileSync(secret, 'secret');
  writeModel(linear(1), folder);
  symlinkSync(secret, path.join(folder, 'tokenizer.json'));
  await t.throwsAsync(rewriteInto(folder, path.join(folder, 'out')), {
    name: 'ModelError',
    message: /tokenizer\.json leads to .*secret, outside the model's folder/,
  });
  t.deepEqual(readdirSync(folder).sort(), ['model.onnx', 'tokenizer.json']);
});

test('copies of companions can be replaced where the sources are read-only, and links in their place stay unwritten', async (t) => {
  const folder = tempFolder();
  writeModel(linear(1), folder);
  const source = path.join(folder, 'tokenizer.json');
  writeFileSync(source, 'new');
  chmodSync(source, 0o444);
  const [output, elsewhere] = [tempFolder(), path.join(tempFolder(), 'mine')];
  writeFileSync(elsewhere, 'keep me');
  const copy = path.join(output, 'tokenizer.json');
  symlinkSync(elsewhere, copy);
  await rewriteInto(folder, output);
  t.is(readFileSync(elsewhere, 'utf8'), 'keep me');
  t.is(readFileSync(copy, 'utf8'), 'new');
  t.true(lstatSync(copy).isFile());
  t.is(lstatSync(copy).mode & 0o200, 0o200);
});

test('a file called onnx is no folder of models', async (t) => {
  const folder = tempFolder();
  writeModel(linear(1), folder);
  writeFileSync(path.join(folder, 'onnx'), 'a note');
  const output = path.join(tempFolder(), 'out');
  t.is((await rewriteInto(folder, output)).length, 1);
});

test("models and companions may be links into one folder, as in Hugging Face's cache", async (t) => {
  const [blobs, snapshot] = [tempFolder(), tempFolder()];
  writeModel(linear(1), blobs, 'blob1');
  writeFileSync(path.join(blobs, 'blob2'), '{"model_type":"opt"}');
  mkdirSync(path.join(snapshot, 'onnx'));
  symlinkSync(path.join(blobs, 'blob1'), path.join(snapshot, 'onnx', 'model.onnx'));
  symlinkSync(path.join(blobs, 'blob2'), path.join(snapshot, 'config.json'));
  const output = path.join(tempFolder(), 'out');
  await rewriteInto(snapshot, output);
  t.like(JSON.parse(readFileSync(path.join(output, 'config.json'), 'utf8')), { model_type: 'opt' });
});
