/** Every exporter's model in tests/fixtures/exports: rewritten, it gives what the original gave, here and in stock ORT. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import test from 'ava';
import type { Tensor } from 'onnxruntime-node';
import ort from 'onnxruntime-node';
import { verifyModels } from '../../graph-passes/index.js';
import { makeTensor } from '../../graph-passes/random-inputs.js';
import { largestDifference, OURS, opTypes, rewrite, run, STOCK } from './test-model.js';

interface JsonTensor {
  dtype: string;
  shape: number[];
  data: number[];
}

const folder = path.resolve('tests/fixtures/exports');
const names = readdirSync(folder).filter((name) => name.endsWith('.onnx'));

/** The files' outputs are rounded to 6 decimals; float16 ones come from another order of summing in float16. */
const toleranceOf = (name: string) => (name.includes('fp16') ? 5e-3 : 5e-6);

function readCase(name: string) {
  const file = path.join(folder, name.replace(/\.onnx$/, '.json'));
  const { inputs, outputs } = JSON.parse(readFileSync(file, 'utf8')) as Record<
    'inputs' | 'outputs',
    Record<string, JsonTensor>
  >;
  const feeds: Record<string, Tensor> = {};
  for (const [input, { dtype, shape, data }] of Object.entries(inputs)) {
    feeds[input] = makeTensor(ort.Tensor, { name: input, type: dtype }, shape, (i) => data[i] as number);
  }
  return { feeds, outputs };
}

for (const name of names) {
  test(`${name} gives its expected outputs, rewritten`, async (t) => {
    const { feeds, outputs } = readCase(name);
    const report = await rewrite(path.join(folder, name), { minSparsity: 0.3 });
    t.is(report.layers.filter(({ decision }) => decision === 'sparse').length, 12);
    t.is(report.fused['fuse-relu'], 2);
    t.is(report.fused['fuse-bias'], 8);
    t.is(report.fused['fuse-residual'], 4);
    const ours = await run(report.output.path, OURS, feeds);
    const stock = await run(report.output.path, STOCK, feeds);
    for (const [output, { data }] of Object.entries(outputs)) {
      t.true(largestDifference(ours[output] ?? [], data) <= toleranceOf(name), `${output}, flashllm`);
      t.true(largestDifference(stock[output] ?? [], data) <= toleranceOf(name), `${output}, stock`);
      t.true(largestDifference(ours[output] ?? [], stock[output] ?? []) <= toleranceOf(name), `${output}, both`);
    }
  });

  test(`${name} pruned: flashllm and stock ORT agree`, async (t) => {
    const { feeds } = readCase(name);
    const report = await rewrite(path.join(folder, name), {
      prune: { method: 'magnitude', sparsity: 0.8, scope: 'layer' },
      minSparsity: 0.75,
    });
    const sparse = report.layers.filter(({ decision }) => decision === 'sparse');
    // 350M has project_in and project_out, which are dense in the file and pruned here.
    t.is(sparse.length, name.startsWith('postln350') ? 14 : 12);
    for (const { sparsity } of sparse) t.true(Math.abs((sparsity ?? 0) - 0.8) < 1e-3);
    const ours = await run(report.output.path, OURS, feeds);
    const stock = await run(report.output.path, STOCK, feeds);
    for (const output of Object.keys(stock)) {
      t.true(largestDifference(ours[output] ?? [], stock[output] ?? []) <= toleranceOf(name), output);
    }
  });

  test(`${name}: verify agrees on random inputs`, async (t) => {
    const original = path.join(folder, name);
    const report = await rewrite(original, { minSparsity: 0.3 });
    const verified = await verifyModels({ original, rewritten: report.output.path, stock: true });
    t.true(verified.ok, JSON.stringify(verified));
    t.is(verified.runs.length, 2);
  });
}

test('nothing but the linear layers changes, and unused weights are gone', async (t) => {
  const input = path.join(folder, 'preln-ts17-past-eager.onnx');
  const report = await rewrite(input, { minSparsity: 0.3 });
  const count = (ops: string[], op: string) => ops.filter((candidate) => candidate === op).length;
  const [before, after] = [opTypes(input), opTypes(report.output.path)];
  t.is(count(after, 'SparseMatMul'), 12);
  t.is(count(before, 'MatMul') - count(after, 'MatMul'), 8);
  t.is(count(after, 'Gemm'), 0);
  t.is(count(after, 'Relu'), 0);
  t.is(count(after, 'LayerNormalization'), count(before, 'LayerNormalization'));
  t.true(report.output.dataBytes < 450_000);
});

test('without the portable function the model runs with flashllm only', async (t) => {
  const report = await rewrite(path.join(folder, 'preln-ts17-past-eager.onnx'), { minSparsity: 0.3, portable: false });
  const { feeds } = readCase('preln-ts17-past-eager.onnx');
  t.truthy(await run(report.output.path, OURS, feeds));
  await t.throwsAsync(run(report.output.path, STOCK, feeds));
});
