/** The commands rewrite, inspect and verify as a user runs them: output, files, exit codes. */
import { execFile, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { makeNode } from '../../graph-passes/graph/node.js';
import type { InspectReport, RewriteReport, VerifyReport } from '../../graph-passes/index.js';
import { encodeModel, onnx } from '../../graph-passes/onnx/proto.js';
import { floats, makeModel, noise, tempFolder, value, writeModel } from '../graph-passes/test-model.js';

const fixture = path.resolve('tests/fixtures/exports/preln-ts17-past-eager.onnx');
const inputs = fixture.replace('.onnx', '.json');
const command = ['--import=tsx', path.resolve('cli/main.ts')];

async function flashllm(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  try {
    return { code: 0, ...(await promisify(execFile)(process.execPath, [...command, ...args])) };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, stdout, stderr };
  }
}

test('rewrite, then verify: table, files beside, exit codes', async (t) => {
  const model = tempFolder();
  cpSync(fixture, path.join(model, 'model.onnx'));
  writeFileSync(path.join(model, 'config.json'), JSON.stringify({ model_type: 'opt' }));
  writeFileSync(path.join(model, 'tokenizer.json'), '{}');
  writeFileSync(path.join(model, 'holiday.jpg'), 'no part of the model');
  const output = path.join(tempFolder(), 'rewritten');
  const done = await flashllm('rewrite', model, '-o', output, '--min-sparsity', '30%');
  t.is(done.code, 0, done.stderr);
  t.regex(done.stdout, /layers\.0\/fc1\/Gemm\s+256 × 64\s+69\.9 %\s+65\.5 kB\s+[\d.]+ kB\s+sparse float32/);
  t.regex(done.stdout, /lm_head\/MatMul.*dense.*below 30\.0 %/);
  t.regex(done.stdout, /12 of 13 layers sparse/);
  t.deepEqual(readdirSync(output).sort(), ['config.json', 'model.onnx', 'model.onnx_data', 'tokenizer.json']);
  t.deepEqual(JSON.parse(readFileSync(path.join(output, 'config.json'), 'utf8')), {
    model_type: 'opt',
    'transformers.js_config': { use_external_data_format: { 'model.onnx': 1 } },
  });

  const verified = await flashllm('verify', model, output, '--stock', '--inputs', inputs);
  t.is(verified.code, 0, verified.stdout + verified.stderr);
  t.regex(verified.stdout, /logits\s+float32\s+2 × 3 × 512/);
  t.regex(verified.stdout, /the models agree/);
  const json = await flashllm('verify', model, output, '--json', '--tolerance', '0', '--seed', '5');
  const report = JSON.parse(json.stdout) as VerifyReport;
  t.is(json.code, report.ok ? 0 : 1);
  t.is(report.runs[0]?.outputs.length, 5);
});

test('verify exits with 1 where models differ', async (t) => {
  const output = tempFolder();
  t.is((await flashllm('rewrite', fixture, '-o', output, '--sparsity', '0.9')).code, 0);
  const verified = await flashllm('verify', fixture, output);
  t.is(verified.code, 1);
  t.regex(verified.stdout, /DIFFERS/);
});

test('--dry-run and inspect write nothing and agree; --json is JSON', async (t) => {
  const dry = await flashllm('rewrite', fixture, '--dry-run', '--json', '--sparsity', '0.6', '--exclude', '*fc1*');
  t.is(dry.code, 0, dry.stderr);
  const { models } = JSON.parse(dry.stdout) as { models: InspectReport[] };
  const layers = models[0]?.layers ?? [];
  t.is(layers.filter(({ decision }) => decision === 'sparse').length, 10);
  t.true(layers.filter(({ name }) => name.includes('fc1')).every(({ reason }) => reason === 'not selected'));
  const inspected = await flashllm('inspect', fixture, '--json', '--sparsity', '0.6', '--exclude', '*fc1*');
  t.deepEqual(JSON.parse(inspected.stdout), { models });
});

test('--include and --weights choose; --scope row prunes every row alike', async (t) => {
  const output = tempFolder();
  const args = ['--include', '*layers.1*fc?*', '--weights', 'fp16', '--sparsity', '50%', '--scope', 'row', '--json'];
  const done = await flashllm('rewrite', fixture, '-o', output, ...args);
  const { models } = JSON.parse(done.stdout) as { models: RewriteReport[] };
  const sparse = models[0]?.layers.filter(({ decision }) => decision === 'sparse') ?? [];
  t.deepEqual(
    sparse.map(({ name, valueType }) => [name, valueType]),
    [
      ['/m/decoder/layers.1/fc1/Gemm', 'float16'],
      ['/m/decoder/layers.1/fc2/Gemm', 'float16'],
    ],
  );
});

test('wrong usage is exit code 2, a failure 1, each with what to do', async (t) => {
  const usage = await flashllm('rewrite', fixture);
  t.is(usage.code, 2);
  t.regex(usage.stderr, /-o <folder>/);
  t.is((await flashllm('rewrite', fixture, '-o', 'x', '--min-sparsity', '2')).code, 2);
  t.is((await flashllm('rewrite', fixture, '-o', 'x', '--method', 'wish')).code, 2);
  const missing = await flashllm('rewrite', '/nowhere/model.onnx', '-o', tempFolder());
  t.is(missing.code, 1);
  t.regex(missing.stderr, /does not exist/);
  const empty = await flashllm('inspect', tempFolder());
  t.is(empty.code, 1);
  t.regex(empty.stderr, /no \.onnx file.*flashllm export/);
  const folder = tempFolder();
  cpSync(fixture, path.join(folder, 'model.onnx'));
  const same = await flashllm('rewrite', folder, '-o', folder);
  t.is(same.code, 1);
  t.regex(same.stderr, /Name another/);
});

test('every model of a folder is rewritten, also in onnx/', async (t) => {
  const folder = tempFolder();
  const model = makeModel({
    nodes: [makeNode('MatMul', ['x', 'w'], ['y'])],
    initializers: [floats('w', [8, 8], noise(64, 1))],
    inputs: [value('x', 1, ['n', 8])],
    outputs: [value('y', 1, ['n', 8])],
  });
  writeModel(model, folder, 'decoder_model.onnx');
  mkdirSync(path.join(folder, 'onnx'));
  writeModel(model, path.join(folder, 'onnx'), 'decoder_with_past_model.onnx');
  const output = tempFolder();
  t.is((await flashllm('rewrite', folder, '-o', output)).code, 0);
  t.true(existsSync(path.join(output, 'decoder_model.onnx')));
  t.true(existsSync(path.join(output, 'onnx', 'decoder_with_past_model.onnx')));
  const several = await flashllm('verify', folder, output);
  t.is(several.code, 1);
  t.regex(several.stderr, /holds 2 models; name one: decoder_model.onnx, onnx\/decoder_with_past_model.onnx/);
});

test('Ctrl-C ends a rewrite with 130 and leaves no file', async (t) => {
  const folder = tempFolder();
  const features = 16384;
  const weight = onnx.TensorProto.create({
    name: 'w',
    dataType: 1,
    dims: [features, features],
    dataLocation: onnx.TensorProto.DataLocation.EXTERNAL,
    externalData: [{ key: 'location', value: 'data.bin' }],
  });
  const model = makeModel({
    nodes: [makeNode('MatMul', ['x', 'x'], ['s']), makeNode('MatMul', ['s', 'w'], ['y'])],
    initializers: [weight],
    inputs: [value('x', 1, [features, features])],
    outputs: [value('y', 1, [features, features])],
  });
  const file = path.join(folder, 'model.onnx');
  writeFileSync(file, encodeModel(model));
  // 1 GiB that takes no room on the disk, and seconds to read.
  writeFileSync(path.join(folder, 'data.bin'), '');
  truncateSync(path.join(folder, 'data.bin'), features * features * 4);
  const output = tempFolder();
  const child = spawn(process.execPath, [...command, 'rewrite', file, '-o', output, '--trace'], { stdio: 'pipe' });
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    if (!stderr) child.kill('SIGINT');
    stderr += chunk.toString();
  });
  t.is(await ended, 130, stderr);
  t.regex(stderr, /interrupted/);
  t.deepEqual(readdirSync(output), []);
});
