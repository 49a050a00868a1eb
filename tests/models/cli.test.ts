// `flashllm export` and `flashllm demo` as processes: exit codes, what they print, what they leave.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { parseOptConfig } from '../../models/opt/config.js';
import { shippedModel } from '../../models/shipped.js';
import { randomParameters, temporaryFolder, tinyConfig, writeCheckpoint } from './support/checkpoints.js';

const main = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));

const start = (...args: string[]) => startIn({}, ...args);

function startIn(environment: Record<string, string>, ...args: string[]) {
  const env = { ...process.env, ...environment };
  const child = spawn(process.execPath, ['--import=tsx', main, ...args], { env });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (data) => {
    stdout += data;
  });
  child.stderr.on('data', (data) => {
    stderr += data;
  });
  const ended = once(child, 'close').then(([code, signal]) => ({
    code: code as number | null,
    signal,
    stdout,
    stderr,
  }));
  return { child, ended };
}

const flashllm = (...args: string[]) => start(...args).ended;

test.serial('export prints what it wrote, and as JSON when asked', async (t) => {
  const output = await temporaryFolder();
  const plain = await flashllm('export', shippedModel(), '-o', output);
  t.is(plain.code, 0, plain.stderr);
  t.regex(plain.stdout, /model\.onnx: OPT, 6 layers, hidden 384/);
  t.regex(plain.stdout, /weights 28\.\d MB/);
  const json = await flashllm(
    'export',
    shippedModel(),
    '-o',
    output,
    '--dtype',
    'float16',
    '--attention',
    'group-query',
    '--json',
  );
  t.like(JSON.parse(json.stdout), {
    dtype: 'float16',
    attention: 'group-query',
    unusedTensors: [],
    config: { layers: 6 },
  });
  await rm(output, { recursive: true });
});

test.serial('wrong usage ends with 2, a bad folder with 1 and a way out', async (t) => {
  const output = join(await temporaryFolder(), 'out');
  const wrong = [
    ['export', '-o', output],
    ['export', shippedModel()],
    ['export', shippedModel(), '-o', output, '--random', '125m'],
    ['export', shippedModel(), '-o', output, '--seed', '1'],
    ['export', '-o', output, '--random', '125m', '--sparsity', '1'],
    ['export', '-o', output, '--random', '126m'],
    ['demo', '--tokens', 'many'],
  ];
  for (const args of wrong) t.is((await flashllm(...args)).code, 2, args.join(' '));
  const missing = await flashllm('export', join(output, 'nothing'), '-o', output);
  t.is(missing.code, 1);
  t.regex(missing.stderr, /cannot read .*config\.json.*expected a Hugging Face model folder/s);
  const folder = await temporaryFolder();
  await writeFile(join(folder, 'config.json'), JSON.stringify(tinyConfig()));
  const weightless = await flashllm('export', folder, '-o', output);
  t.is(weightless.code, 1);
  t.regex(weightless.stderr, /holds no weights; expected one of model\.safetensors/);
});

test.serial('tensors without a place are named', async (t) => {
  const parameters = new Map(randomParameters(parseOptConfig(tinyConfig()), 'float32'));
  parameters.set('layers.0.mystery.weight', { shape: [1], data: Float64Array.of(1) });
  const folder = await writeCheckpoint(tinyConfig(), parameters, 'float32');
  const { stdout } = await flashllm('export', folder, '-o', join(folder, 'out'));
  t.regex(stdout, /not used: model\.decoder\.layers\.0\.mystery\.weight/);
});

for (const [signal, exit] of [
  ['SIGINT', 130],
  ['SIGHUP', 129],
  ['SIGTERM', 143],
] as const)
  test.serial(`${signal} ends an export with ${exit} and leaves nothing`, async (t) => {
    const parent = await temporaryFolder();
    const output = join(parent, 'a', 'out');
    const { child, ended } = start('export', '--random', '13b', '-o', output);
    // The temporary file shows that writing is under way.
    while ((await readdir(output).catch(() => [])).length === 0)
      await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill(signal);
    const { code, stderr } = await ended;
    t.is(code, exit, stderr);
    t.regex(stderr, /interrupted/);
    t.deepEqual(await readdir(parent), []);
  });

test.serial('demo and eval remove their temporary folders, whatever signal stops them', async (t) => {
  const temporary = await temporaryFolder();
  for (const [signal, exit] of [
    ['SIGINT', 130],
    ['SIGHUP', 129],
    ['SIGTERM', 143],
  ] as const)
    for (const args of [['demo'], ['eval', shippedModel()]]) {
      const { child, ended } = startIn({ TMPDIR: temporary }, ...args);
      const own = async () => (await readdir(temporary)).filter((name) => /^flashllm-(demo|eval)-/.test(name));
      while ((await own()).length === 0) await new Promise((resolve) => setTimeout(resolve, 20));
      child.kill(signal);
      const { code, stderr } = await ended;
      t.is(code, exit, stderr);
      t.deepEqual(await own(), [], `${args[0]} ${signal}`);
    }
  await rm(temporary, { recursive: true });
});

test.serial('the demo with --sparsity prunes here, keeps both models when asked and compares them', async (t) => {
  const output = await temporaryFolder();
  const { code, stdout, stderr } = await flashllm(
    'demo',
    '-o',
    output,
    '--sparsity',
    '0.5',
    '--tokens',
    '8',
    '--eval-tokens',
    '600',
    '--json',
  );
  t.is(code, 0, stderr);
  const { dense, sparse } = JSON.parse(stdout);
  t.is(dense.evalTokens, 600);
  t.true(sparse.fileBytes < 0.75 * dense.fileBytes);
  t.true(sparse.weightBytes < 0.75 * dense.weightBytes);
  t.true(sparse.perplexity > dense.perplexity && dense.tokensPerSecond > 0 && sparse.tokensPerSecond > 0);
  t.deepEqual((await readdir(join(output, 'dense'))).sort(), (await readdir(join(output, 'sparse'))).sort());
  t.is(JSON.parse(await readFile(join(output, 'sparse', 'config.json'), 'utf8')).model_type, 'opt');
  await rm(output, { recursive: true });
});

test.serial('the demo streams text of the shipped sparse model and ends with the table', async (t) => {
  const { code, stdout } = await flashllm(
    'demo',
    '--tokens',
    '8',
    '--eval-tokens',
    '600',
    '--prompt',
    'Call me Ishmael.',
    '--threads',
    '1',
    '--device',
    'cpu',
  );
  t.is(code, 0);
  t.regex(stdout, /Call me Ishmael\./);
  for (const row of ['files', 'weights of the linears', 'tokens/s, batch 1', 'perplexity, 600 held-out tokens'])
    t.true(stdout.includes(row), row);
});
