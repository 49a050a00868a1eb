/** The commands prune and eval, and rewrite of a Hugging Face folder, as a user runs them. */
import { execFile, spawn } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import test from 'ava';
import { parseOptConfig } from '../../models/opt/config.js';
import type { PruneResult } from '../../models/pruning/index.js';
import { shippedCalibrationText, shippedHeldOutText, shippedModel } from '../../models/shipped.js';
import { tempFolder } from '../graph-passes/test-model.js';
import { randomParameters, tinyConfig, writeCheckpoint } from '../models/support/checkpoints.js';

const command = ['--import=tsx', resolve('cli/main.ts')];
const text = join(tempFolder(), 'text.txt');
writeFileSync(text, readFileSync(shippedCalibrationText(), 'utf8').slice(0, 12_000));
const few = ['--calibration', text, '--sequences', '4', '--length', '64'];

/** A tiny checkpoint with the shipped model's tokenizer. */
async function tinyModel(): Promise<string> {
  const json = tinyConfig({ vocab_size: 8192 });
  const model = await writeCheckpoint(json, randomParameters(parseOptConfig(json), 'float16'), 'float16');
  copyFileSync(join(shippedModel(), 'tokenizer.json'), join(model, 'tokenizer.json'));
  return model;
}

async function flashllm(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  try {
    return { code: 0, ...(await promisify(execFile)(process.execPath, [...command, ...args])) };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, stdout, stderr };
  }
}

test.serial('prune: table, report, sparsities by pattern and file; eval takes the folder', async (t) => {
  const output = join(tempFolder(), 'pruned');
  const file = join(tempFolder(), 'sparsity.json');
  writeFileSync(file, '{"*.fc1": 0.7, "*.fc2": 0.2}');
  const settings = ['--sparsity', '50%', '--sparsity-file', file, '--layer-sparsity', '*.fc2=0.3', ...few];
  const done = await flashllm('prune', shippedModel(), '-o', output, ...settings);
  t.is(done.code, 0, done.stderr);
  t.regex(done.stdout, /layers\.0\.self_attn\.q_proj\s+384 × 384\s+50\.0 %\s+\d+\.\d\d %/);
  t.regex(done.stdout, /layers\.5\.fc1\s+1536 × 384\s+70\.0 %/);
  t.regex(done.stdout, /layers\.5\.fc2\s+384 × 1536\s+30\.0 %/);
  t.regex(done.stdout, /50\.\d % zeros in the linears by sparsegpt, 4 × 64 tokens/);
  t.true(
    ['pruning.json', 'pruning.svg', 'tokenizer.json', 'config.json'].every((name) =>
      readdirSync(output).includes(name),
    ),
  );
  const again = await flashllm('prune', shippedModel(), '-o', output, ...settings);
  t.is(again.code, 1);
  t.regex(again.stderr, /exists and is not empty/);

  const evaluated = await flashllm('eval', output, '--text', text, '--window', '256');
  t.is(evaluated.code, 0, evaluated.stderr);
  t.regex(evaluated.stdout, /perplexity \d+\.\d{4} on .*: \d+ tokens in windows of 256/);
  for (const [content, what] of [
    ['{bad', /sparsity\.json is not JSON: .*; expected \{"layers\.0\.\*": 0\.4\}/],
    ['[]', /sparsity\.json is not a JSON object from patterns to sparsities/],
  ] as const) {
    writeFileSync(file, content);
    const bad = await flashllm('prune', shippedModel(), '-o', `${output}-2`, ...settings);
    t.is(bad.code, 1);
    t.regex(bad.stderr, what);
  }
  // Told before the folder is exported.
  const unread = await flashllm('eval', output, '--text', join(output, 'none.txt'));
  t.is(unread.code, 1);
  t.regex(unread.stderr, /cannot read the text: .*none\.txt.*; name a UTF-8 file that is there/);
  const beyond = await flashllm('eval', output, '--text', text, '--window', '1025');
  t.is(beyond.code, 1);
  t.regex(beyond.stderr, /--window is 1025, expected at most the 1024 tokens that the model takes/);
});

test.serial('an interrupted prune says how many layers are kept, and where', async (t) => {
  const output = join(tempFolder(), 'pruned');
  const partial = `${output}.partial`;
  const settings = ['--sparsity', '0.5', '--calibration', text, '--sequences', '16', '--length', '128'];
  const interrupted = async (ready: () => boolean, ...more: string[]) => {
    const args = [...command, 'prune', shippedModel(), '-o', output, ...settings, ...more];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    const ended = new Promise((settle) => child.on('close', settle));
    let stderr = '';
    child.stderr.on('data', (data) => {
      stderr += data;
    });
    while (!ready()) await sleep(5);
    child.kill('SIGINT');
    t.is(await ended, 130, stderr);
    return stderr;
  };
  const holds = (start: string) => existsSync(partial) && readdirSync(partial).some((name) => name.startsWith(start));
  const early = await interrupted(() => holds('model-00002'));
  t.regex(early, /^interrupted: no layer is done yet; what there is lies in .*pruned\.partial, where the same command/);
  const later = await interrupted(() => holds('model-00004'));
  t.regex(
    later,
    /^interrupted: the 2 layers that are done are kept in .*pruned\.partial: the same command goes on after/,
  );
  const anew = await interrupted(() => !holds('model-00003') && holds('model-00002'), '--restart');
  t.regex(anew, /^interrupted: no layer is done yet/);
});

test.serial('eval: this package and stock ONNX Runtime agree to four digits', async (t) => {
  const part = join(tempFolder(), 'held-out.txt');
  writeFileSync(part, readFileSync(shippedHeldOutText(), 'utf8').slice(0, 6000));
  const [dense, output] = [join(tempFolder(), 'dense'), join(tempFolder(), 'sparse')];
  t.is((await flashllm('export', shippedModel(), '-o', dense)).code, 0);
  const rewritten = await flashllm('rewrite', dense, '-o', output, '--sparsity', '0.6');
  t.is(rewritten.code, 0, rewritten.stderr);
  const measured = await Promise.all(
    [
      ['--device', 'cpu'],
      ['--stock', '--threads', '1'],
    ].map(async (args) => {
      const { code, stdout, stderr } = await flashllm('eval', output, '--text', part, '--json', ...args);
      t.is(code, 0, stderr);
      return JSON.parse(stdout) as { perplexity: number; tokens: number; provider: string; window: number };
    }),
  );
  const [ours, stock] = measured;
  t.deepEqual([ours?.provider, stock?.provider], ['flashllm', 'stock']);
  t.is(ours?.window, 1024);
  t.is(ours?.tokens, stock?.tokens);
  t.is(ours?.perplexity.toPrecision(4), stock?.perplexity.toPrecision(4));
});

test.serial('rewrite of a Hugging Face folder: pruned by text, exported, rewritten; nothing else stays', async (t) => {
  const model = await tinyModel();
  const output = join(tempFolder(), 'sparse');
  const done = await flashllm('rewrite', model, '-o', output, '--sparsity', '0.8', '--method', 'wanda');
  t.is(done.code, 0, done.stderr);
  t.regex(done.stdout, /\d+\.\d % zeros in the linears by wanda, 128 × 40 tokens/);
  t.regex(done.stdout, /8 of 9 layers sparse/);
  // What is printed names what is still there.
  t.true(done.stdout.includes(`\n${model}\n`));
  t.notRegex(done.stdout, /\.pruned|\.onnx-|pruning\.json/);
  t.deepEqual(readdirSync(dirname(output)), ['sparse']);
  t.true(
    ['model.onnx', 'model.onnx_data', 'tokenizer.json', 'config.json'].every((name) =>
      readdirSync(output).includes(name),
    ),
  );

  const onnx = await flashllm(
    'rewrite',
    output,
    '-o',
    join(tempFolder(), 'x'),
    '--sparsity',
    '0.9',
    '--method',
    'admm',
  );
  t.is(onnx.code, 1);
  t.regex(onnx.stderr, /--method admm needs a Hugging Face folder/);
});

test.serial(
  'rewrite of a Hugging Face folder leaves folders beside the output alone, the input among them',
  async (t) => {
    const model = await tinyModel();
    const folder = tempFolder();
    const output = join(folder, 'sparse');
    const keep = (name: string) => {
      mkdirSync(join(folder, name));
      writeFileSync(join(folder, name, 'note.txt'), 'keep me');
    };
    keep('sparse.onnx');
    cpSync(model, join(folder, 'sparse.pruned'), { recursive: true });
    const before = readdirSync(model).sort();
    // The input is what `<output>.pruned` names: without a sparsity nothing is pruned, and it is an input as any other.
    const own = await flashllm('rewrite', join(folder, 'sparse.pruned'), '-o', output);
    t.is(own.code, 0, own.stderr);
    for (const input of [model, join(folder, 'sparse.pruned')]) {
      const refused = await flashllm('rewrite', input, '-o', output, '--sparsity', '0.8');
      t.is(refused.code, 1);
      t.regex(
        refused.stderr,
        /sparse\.pruned, where .* exists\. .*flashllm rewrite .*sparse\.pruned -o .*sparse; else/,
      );
    }
    t.deepEqual(readdirSync(folder).sort(), ['sparse', 'sparse.onnx', 'sparse.pruned']);
    t.deepEqual(readdirSync(join(folder, 'sparse.pruned')).sort(), before);
    t.deepEqual(readdirSync(join(folder, 'sparse.onnx')), ['note.txt']);

    symlinkSync(model, join(folder, 'link'));
    const same = await flashllm('rewrite', model, '-o', join(folder, 'link'));
    t.is(same.code, 1);
    t.regex(same.stderr, /is the one that the model is in\. Name another/);
    const file = await flashllm('rewrite', model, '-o', join(folder, 'sparse.onnx', 'note.txt'), '--sparsity', '0.8');
    t.is(file.code, 1);
    t.regex(file.stderr, /note\.txt exists and is no folder/);
    const below = join(folder, 'sparse.onnx', 'note.txt', 'out');
    const lost = await flashllm('rewrite', model, '-o', below, '--sparsity', '0.8');
    t.is(lost.code, 1);
    t.regex(lost.stderr, /note\.txt is a file, where a folder is to be/);
    t.deepEqual(readdirSync(join(folder, 'sparse.onnx')), ['note.txt']);
  },
);

test.serial(
  'after an export in place the checkpoint is what is pruned, by the method that the output names',
  async (t) => {
    const model = await tinyModel();
    const file = join(model, 'config.json');
    // Numbers as Python writes them, which JavaScript would not.
    const before = readFileSync(file, 'utf8').replace(/\{\s*/, '{\n  "layer_norm_eps": 1e-05,\n  "dropout": 0.0,\n  ');
    writeFileSync(file, before);
    t.is((await flashllm('export', model, '-o', model)).code, 0);
    const after = readFileSync(file, 'utf8');
    t.true(after.startsWith(before.slice(0, before.lastIndexOf('}')).trimEnd()));
    t.deepEqual(JSON.parse(after), {
      ...JSON.parse(before),
      'transformers.js_config': { use_external_data_format: { 'model.onnx': 1 } },
    });

    const output = join(tempFolder(), 'sparse');
    const done = await flashllm('rewrite', model, '-o', output, '--sparsity', '0.8');
    t.is(done.code, 0, done.stderr);
    t.regex(done.stderr, /holds a checkpoint and an ONNX model: the checkpoint is pruned .*name its \.onnx file\n/);
    t.regex(done.stdout, /80\.\d % zeros in the linears by sparsegpt/);
    const named = ['--sparsity', '0.8', '--method', 'wanda'];
    const dry = await flashllm('rewrite', model, '--dry-run', ...named);
    t.regex(dry.stdout, /\n80 % zeros as --method wanda would make them on calibration text\n/);
    const json = JSON.parse((await flashllm('rewrite', model, '--dry-run', '--json', ...named)).stdout);
    t.deepEqual(json.models[0].prune, { method: 'wanda', sparsity: 0.8 });

    // The ONNX model: as it is, or by magnitude where it is named.
    const plain = await flashllm('rewrite', model, '-o', join(tempFolder(), 'x'));
    t.true(plain.stdout.startsWith(`${join(model, 'model.onnx')}\n`), plain.stdout);
    t.regex(plain.stdout, /\nno layer has 45 % zeros; prune the checkpoint first \(flashllm prune\)\n/);
    const few = await flashllm('rewrite', model, '-o', join(tempFolder(), 'x'), '--sparsity', '0.3', '--json');
    t.like(JSON.parse(few.stdout).models[0], {
      prune: { method: 'sparsegpt', sparsity: 0.3 },
      hint: '30 % zeros are too few for any layer; prune to more',
    });
    for (const [name, input] of [
      ['rewrite', join(model, 'model.onnx')],
      ['inspect', model],
    ] as const) {
      const { code, stdout } = await flashllm(
        name,
        input,
        '--sparsity',
        '0.8',
        ...(name === 'rewrite' ? ['--dry-run'] : []),
      );
      t.is(code, 0);
      t.regex(stdout, /\n80 % zeros by magnitude, without calibration; flashllm prune .* costs less accuracy\n/);
    }
    const inspected = await flashllm('inspect', model, ...named);
    t.is(inspected.code, 1);
    t.regex(
      inspected.stderr,
      /--method wanda needs a Hugging Face folder .* is one, but .*flashllm rewrite .* --dry-run/,
    );
    // What is no OPT cannot be pruned as a checkpoint.
    writeFileSync(file, '{"model_type": "llama"}');
    t.regex((await flashllm('rewrite', model, '--dry-run', '--sparsity', '0.8')).stdout, /zeros by magnitude/);
  },
);

test.serial('a dry run of a Hugging Face folder leaves nothing, not even the folders of its output', async (t) => {
  const folder = tempFolder();
  const dry = await flashllm('rewrite', await tinyModel(), '--dry-run', '-o', join(folder, 'a', 'b', 'sparse'));
  t.is(dry.code, 0, dry.stderr);
  t.deepEqual(readdirSync(folder), []);
});

test.serial('a rewrite that fails after pruning keeps the pruned model and says how to go on', async (t) => {
  const folder = tempFolder();
  const output = join(folder, 'sparse');
  mkdirSync(output);
  // In the way of the model's file, which is written last.
  mkdirSync(join(output, 'model.onnx'));
  writeFileSync(join(output, 'model.onnx', 'note.txt'), 'keep me');
  const failed = await flashllm(
    'rewrite',
    await tinyModel(),
    '-o',
    output,
    '--sparsity',
    '0.8',
    '--method',
    'magnitude',
  );
  t.is(failed.code, 1);
  t.regex(failed.stderr, /the pruned model is kept; to go on with it: flashllm rewrite .*sparse\.pruned -o .*sparse\n/);
  t.deepEqual(readdirSync(folder).sort(), ['sparse', 'sparse.pruned']);
  const rest = await flashllm('rewrite', `${output}.pruned`, '-o', join(folder, 'other'));
  t.is(rest.code, 0, rest.stderr);
  t.regex(rest.stdout, /8 of 9 layers sparse/);
});

test.serial('prune --json prints the report; wrong usage ends with 2', async (t) => {
  const output = join(tempFolder(), 'pruned');
  const done = await flashllm(
    'prune',
    shippedModel(),
    '-o',
    output,
    '--sparsity',
    '0.25',
    '--method',
    'magnitude',
    '--json',
    ...few,
  );
  t.is(done.code, 0, done.stderr);
  const { report, resumedLayers } = JSON.parse(done.stdout) as PruneResult;
  t.is(resumedLayers, 0);
  t.is(report.total.sparsity, 0.25);
  t.is(report.settings.method, 'magnitude');
  for (const args of [
    ['--sparsity', '1'],
    ['--sparsity', '0.5', '--method', 'wish'],
    ['--sparsity', '0.5', '--layer-sparsity', '0.4'],
    ['--sparsity', '0.5', '--scope', 'row'],
    ['--sparsity', '0.5', '--iterations', '3', '--method', 'wanda'],
    [],
  ])
    t.is((await flashllm('prune', shippedModel(), '-o', join(tempFolder(), 'x'), ...args)).code, 2);
});
