/** The commands rewrite, inspect and verify as a user runs them: output, files, exit codes. */
import { execFile, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
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
  t.like(report, { original: path.join(model, 'model.onnx'), rewritten: path.join(output, 'model.onnx') });
  t.is(report.runs[0]?.outputs.length, 5);
});

test('verify exits with 1 where models differ', async (t) => {
  const output = tempFolder();
  t.is((await flashllm('rewrite', fixture, '-o', output, '--sparsity', '0.9')).code, 0);
  const verified = await flashllm('verify', fixture, output);
  t.is(verified.code, 1);
  t.regex(verified.stdout, /DIFFERS/);
});

test('verify says why outputs cannot be compared, in a form that no script takes for a small difference', async (t) => {
  const model = (op: string, type: number, shape: number[], output = 'y', attributes = {}) =>
    writeModel(
      makeModel({
        nodes: [
          makeNode('Sub', ['x', 'x'], ['zero']),
          makeNode(op, op === 'Div' ? ['x', 'zero'] : ['x'], [output], { attributes }),
        ],
        initializers: [],
        inputs: [value('x', 1, [2, 8])],
        outputs: [value(output, type, shape)],
      }),
    );
  const original = model('Identity', 1, [2, 8]);
  for (const [mismatch, other] of [
    ['type', model('Cast', 10, [2, 8], 'y', { to: 10 })],
    ['shape', model('Transpose', 1, [8, 2], 'y', { perm: [1, 0] })],
    ['missing', model('Identity', 1, [2, 8], 'z')],
    ['non-finite', model('Div', 1, [2, 8])],
  ] as const) {
    const { code, stdout } = await flashllm('verify', original, other, '--json');
    t.is(code, 1);
    const found = (JSON.parse(stdout) as VerifyReport).runs[0]?.outputs[0];
    t.like(found, { mismatch, maxAbsolute: 'Infinity', maxRelative: 'Infinity', ok: false });
    t.true((await flashllm('verify', original, other)).stdout.includes(`DIFFERS (${mismatch})`));
  }
});

test('verify says of a damaged model which it is, what is wrong with it and what to do, and nothing else', async (t) => {
  const whole = tempFolder();
  t.is((await flashllm('rewrite', fixture, '-o', whole, '--sparsity', '0.7')).code, 0);
  const copy = (change: (folder: string) => void): string => {
    const folder = path.join(tempFolder(), 'copy');
    cpSync(whole, folder, { recursive: true });
    change(folder);
    return folder;
  };
  const graph = (folder: string) => path.join(folder, path.basename(fixture));
  const data = (folder: string) => `${graph(folder)}_data`;
  const damaged =
    /the rewritten model .* is damaged or incomplete\. .*\. Copy it again with all of its files, or rewrite it again/;
  const cases: [RegExp, string][] = [
    [/: the file is cut short/, copy((folder) => truncateSync(graph(folder), 3000))],
    [/: the file is empty, expected an ONNX model/, copy((folder) => truncateSync(graph(folder), 0))],
    [/: the file is no ONNX model/, copy((folder) => writeFileSync(graph(folder), 'a letter, not a model'))],
    [
      /: external data of tensor .* are outside .*_data \(1000 bytes\)/,
      copy((folder) => truncateSync(data(folder), 1000)),
    ],
    [/: external data of tensor .*_data is missing/, copy((folder) => rmSync(data(folder)))],
  ];
  for (const [what, folder] of cases) {
    const { code, stdout, stderr } = await flashllm('verify', fixture, folder);
    t.is(code, 1);
    t.is(stdout, '');
    // One line: the session's log, if there were one, would come before it.
    t.regex(stderr, /^.*error.*\n$/);
    t.regex(stderr, damaged);
    t.regex(stderr, what);
  }
  const original = await flashllm('verify', cases[0]?.[1] as string, whole);
  t.is(original.code, 1);
  t.regex(original.stderr, /^.*error.*: the original .* is damaged .* cut short.* or export it again\n$/);

  // Not in the files' structure, but in what they hold.
  const changed = copy((folder) => {
    const bytes = readFileSync(data(folder));
    bytes.subarray(-64).fill(0x5a);
    writeFileSync(data(folder), bytes);
  });
  const refused = await flashllm('verify', fixture, changed);
  t.is(refused.code, 1);
  t.regex(
    refused.stderr,
    /the rewritten model .* does not load in a session of flashllm \+ cpu: .* is not valid: .* rewrite it again/,
  );
});

test('rewrite and inspect say of a damaged model, or of a file that is none, what is wrong and what to do', async (t) => {
  const folder = tempFolder();
  t.is((await flashllm('rewrite', fixture, '-o', folder, '--sparsity', '0.7')).code, 0);
  const cut = path.join(folder, path.basename(fixture));
  truncateSync(`${cut}_data`, 1000);
  const letter = path.join(folder, 'letter.txt');
  writeFileSync(letter, 'a letter, not a model');
  const output = path.join(folder, 'output');
  for (const [model, what] of [
    [cut, /: external data of tensor .* are outside .*_data \(1000 bytes\)\. Copy/],
    [letter, /letter\.txt: .*: the file is no ONNX model\. Copy/],
  ] as const)
    for (const line of [['rewrite', '-o', output], ['rewrite', '--dry-run'], ['inspect']]) {
      const { code, stdout, stderr } = await flashllm(...line, model);
      t.deepEqual([code, stdout], [1, ''], line.join(' '));
      t.regex(stderr, what);
      t.regex(stderr, /error.*: the model .* is damaged or incomplete\. .* again, or name another \.onnx file\n$/);
    }
  t.false(existsSync(output));
});

test('verify names a path without a model, models that do not belong together, and inputs that it cannot read', async (t) => {
  const folder = tempFolder();
  const fail = async (...args: string[]) => {
    const { code, stderr } = await flashllm('verify', ...args);
    t.is(code, 1);
    return stderr;
  };
  const nowhere = path.join(folder, 'nowhere.onnx');
  t.regex(await fail(nowhere, fixture), /nowhere\.onnx does not exist; expected an \.onnx file or a folder with one/);
  t.regex(await fail(fixture, nowhere), /nowhere\.onnx does not exist; expected an \.onnx file or a folder with one/);
  t.regex(await fail(fixture, folder), /holds no \.onnx file\. .*run flashllm export first/);
  t.regex(await fail(fixture, '/dev/null'), /\/dev\/null is neither a file nor a folder; expected an \.onnx model/);
  mkdirSync(path.join(folder, 'model.onnx'));
  t.regex(await fail(fixture, folder), /model\.onnx is not a file; expected an ONNX model/);
  const other = makeModel({
    nodes: [makeNode('MatMul', ['x', 'w'], ['y'])],
    initializers: [floats('w', [8, 8], noise(64, 1))],
    inputs: [value('x', 1, ['n', 8])],
    outputs: [value('y', 1, ['n', 8])],
  });
  t.regex(
    await fail(fixture, writeModel(other)),
    /the rewritten model .* does not run .*'x' is missing.*: check that it was made from this original/,
  );
  t.regex(await fail(fixture, fixture, '--inputs', nowhere), /cannot read the inputs in .*ENOENT.*; expected JSON/);
  t.regex(await fail(fixture, fixture, '--inputs', fixture), /cannot read the inputs in .*; expected JSON, /);
  const json = path.join(folder, 'inputs.json');
  for (const [input, what] of [
    [{ dtype: 'int64', shape: '2', data: [1, 2] }, /has shape "2", expected a list of whole numbers/],
    [{ dtype: 'int64', shape: [-1, -2], data: [1, 2] }, /has shape \[-1,-2\], expected a list of whole numbers/],
    [{ dtype: 'int64', shape: [1, 3], data: [1, 2] }, /has 2 values in data, expected the 3 of its shape \[1, 3\]/],
    [{ dtype: 'int64', shape: [1, 1], data: 7 }, /has data 7, expected a flat list of numbers/],
    [{ dtype: 'int64', shape: [1, 1], data: [1.5] }, /is no tensor of int64: .* 1\.5 .*integer/],
    [{ dtype: 'float32', shape: [1, 1], data: [1] }, /has dtype "float32", expected 'int64'/],
    [null, /has dtype undefined, expected 'int64'/],
    [undefined, /is missing: found ids, expected input_ids \(int64\), .*past.*\(float32\)/],
  ] as const) {
    writeFileSync(json, JSON.stringify({ inputs: { ids: 1, input_ids: input } }));
    const stderr = await fail(fixture, fixture, '--inputs', json);
    t.regex(stderr, /error.*: .*inputs\.json: input 'input_ids' /);
    t.regex(stderr, what);
  }
});

test('verify refuses sizes that are none, or more than the configuration beside a model allows', async (t) => {
  for (const flag of ['--batch', '--sequence'])
    for (const size of ['0', '1e9']) t.is((await flashllm('verify', fixture, fixture, flag, size)).code, 2);
  const folder = tempFolder();
  cpSync(fixture, path.join(folder, 'model.onnx'));
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify({ max_position_embeddings: 40 }));
  const beyond = await flashllm('verify', fixture, folder, '--past', '36');
  t.is(beyond.code, 1);
  t.regex(beyond.stderr, /--past and --sequence are 41 tokens, expected at most the 40 that .*model\.onnx takes/);
  t.is((await flashllm('verify', fixture, folder)).code, 0);
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

test('where no layer has enough zeros, the output says so and what to do', async (t) => {
  const hint = 'no layer has 72.5 % zeros; prune the checkpoint first (flashllm prune)';
  const most = ['--min-sparsity', '72.5%'];
  for (const line of [['rewrite', '-o', tempFolder()], ['rewrite', '--dry-run'], ['inspect']]) {
    const { code, stdout } = await flashllm(...line, fixture, ...most);
    t.is(code, 0);
    t.true(stdout.includes(`\n${hint}\n`), stdout);
    const json = await flashllm(...line, fixture, '--json', ...most);
    t.is((JSON.parse(json.stdout) as { models: InspectReport[] }).models[0]?.hint, hint);
  }
  const pruned = await flashllm('inspect', fixture, '--sparsity', '0.8', '--min-sparsity', '0.9', '--exclude', '*fc1*');
  t.regex(pruned.stdout, /\nno layer that is selected has 90 % zeros after pruning to 80 %; prune to more\n/);
  for (const args of [[], ['--include', '*fc1*', '--min-sparsity', '0.5']])
    t.notRegex((await flashllm('inspect', fixture, ...args)).stdout, /no layer/);
});

test('a pattern that no layer of any model matches is refused before anything is written', async (t) => {
  const folder = tempFolder();
  const output = path.join(tempFolder(), 'out');
  const model = (name: string) =>
    makeModel({
      nodes: [makeNode('MatMul', ['x', `${name}_w`], ['y'], { name: `${name}/MatMul` })],
      initializers: [floats(`${name}_w`, [8, 8], noise(64, 1))],
      inputs: [value('x', 1, ['n', 8])],
      outputs: [value('y', 1, ['n', 8])],
    });
  writeModel(model('first'), folder, 'a.onnx');
  writeModel(model('second'), folder, 'b.onnx');
  for (const line of [['rewrite', '-o', output], ['rewrite', '--dry-run'], ['inspect']])
    for (const option of ['include', 'exclude']) {
      const { code, stdout, stderr } = await flashllm(
        ...line,
        folder,
        `--${option}`,
        '*first*',
        `--${option}`,
        '*nope*',
      );
      t.deepEqual([code, stdout], [1, '']);
      t.regex(
        stderr,
        new RegExp(
          `no linear layer matches the pattern "\\*nope\\*" of ${option}: .* first/MatMul to second/MatMul, .* first_w to second_w;`,
        ),
      );
    }
  t.false(existsSync(output));
  t.is((await flashllm('rewrite', folder, '-o', output, '--include', 'second_w')).code, 0);
});

test('wrong usage is exit code 2, a failure 1, each with what to do', async (t) => {
  const usage = await flashllm('rewrite', fixture);
  t.is(usage.code, 2);
  t.regex(usage.stderr, /-o <folder>/);
  t.is((await flashllm('rewrite', fixture, '-o', 'x', '--min-sparsity', '2')).code, 2);
  t.is((await flashllm('rewrite', fixture, '-o', 'x', '--method', 'wish')).code, 2);
  for (const stray of [
    ['--method', 'magnitude'],
    ['--scope', 'row'],
  ]) {
    t.is((await flashllm('inspect', fixture, ...stray)).code, 2);
    const { code, stderr } = await flashllm('rewrite', fixture, '-o', 'x', ...stray);
    t.is(code, 2);
    t.regex(stderr, /says how to prune: give --sparsity/);
  }
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

test('names of a model cannot steer the terminal', async (t) => {
  const name = '\u001b]0;title\u0007\u001b[2J\nlayer \u009b1m ü';
  const escaped = '\\x1b]0;title\\x07\\x1b[2J\\x0alayer \\x9b1m ü';
  const model = (initializers: Parameters<typeof makeModel>[0]['initializers']) =>
    writeModel(
      makeModel({
        nodes: [makeNode('MatMul', ['x', 'w'], ['y'], { name }), makeNode('Relu', ['x'], ['z'], { name })],
        initializers,
        inputs: [value('x', 1, ['n', 8])],
        outputs: [value('y', 1, ['n', 8]), value('z', 1, ['n', 8])],
      }),
    );
  const file = model([floats('w', [8, 8], noise(64, 1))]);
  const inspected = await flashllm('inspect', file);
  t.regex(inspected.stdout, /^\\x1b\]0;title.* ü +8 × 8 /m);
  const { stdout, stderr } = await flashllm('rewrite', file, '-o', tempFolder(), '--trace');
  t.true(stdout.includes(escaped));
  t.true(stderr.includes(`refused fuse-relu ${escaped}: `));
  const twice = await flashllm('inspect', model([floats(name, [1], [1]), floats(name, [1], [1])]));
  t.is(twice.code, 1);
  t.regex(twice.stderr, /two initializers of one graph have the name '\\x1b\]0;/);
  for (const text of [inspected.stdout, stdout, stderr, twice.stderr]) t.notRegex(text, /[^\P{Cc}\n]/u);
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

test('signals that come as one stop let a command clean up, a later one ends it at once', async (t) => {
  const script = `
    import { abortOnInterrupt } from ${JSON.stringify(path.resolve('cli/terminal.ts'))};
    const { signal } = abortOnInterrupt();
    signal.addEventListener('abort', () => console.log(signal.reason.message));
    setInterval(() => {}, 1000);
    console.log('ready');`;
  const child = spawn(process.execPath, ['--import=tsx', '--input-type=module', '-e', script], { stdio: 'pipe' });
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  let stdout = '';
  child.stdout.on('data', async (chunk: Buffer) => {
    stdout += chunk.toString();
    if (stdout !== 'ready\n') return;
    child.kill('SIGINT');
    child.kill('SIGTERM');
    await sleep(700);
    t.is(child.exitCode, null);
    child.kill('SIGTERM');
  });
  t.is(await ended, 143);
  t.is(stdout, 'ready\ninterrupted by SIGINT\n');
});

test('a closed terminal stops a command as SIGTERM does, and is not impatient', async (t) => {
  const script = `
    import { abortOnInterrupt } from ${JSON.stringify(path.resolve('cli/terminal.ts'))};
    const { signal } = abortOnInterrupt();
    const work = setInterval(() => {}, 1000);
    signal.addEventListener('abort', () => {
      console.log(signal.reason.message);
      setTimeout(() => {
        clearInterval(work);
        process.exitCode = signal.reason.exitCode;
      }, 1500);
    });
    console.log('ready');`;
  const child = spawn(process.execPath, ['--import=tsx', '--input-type=module', '-e', script], { stdio: 'pipe' });
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  let stdout = '';
  child.stdout.on('data', async (chunk: Buffer) => {
    stdout += chunk.toString();
    if (stdout !== 'ready\n') return;
    child.kill('SIGHUP');
    await sleep(700);
    child.kill('SIGHUP');
  });
  t.is(await ended, 129);
  t.is(stdout, 'ready\ninterrupted by SIGHUP\n');
});

/** A model of 1 GiB that takes no room on the disk, and seconds to read. */
function slowModel(folder: string, name: string): string {
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
  const file = path.join(folder, name);
  writeFileSync(file, encodeModel(model));
  writeFileSync(path.join(folder, 'data.bin'), '');
  truncateSync(path.join(folder, 'data.bin'), features * features * 4);
  return file;
}

test('Ctrl-C ends a rewrite with 130 and leaves no file', async (t) => {
  const file = slowModel(tempFolder(), 'model.onnx');
  const parent = tempFolder();
  const output = path.join(parent, 'a', 'out');
  const child = spawn(process.execPath, [...command, 'rewrite', file, '-o', output, '--trace'], { stdio: 'pipe' });
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    // As timeout -s INT stops a command: itself, then its group.
    if (!stderr) for (let i = 0; i < 2; i++) child.kill('SIGINT');
    stderr += chunk.toString();
  });
  t.is(await ended, 130, stderr);
  t.regex(stderr, /^interrupted: nothing was left half-written$/m);
  t.deepEqual(readdirSync(parent), []);
});

test('of several models Ctrl-C leaves those that are done, and says so', async (t) => {
  const folder = tempFolder();
  const small = makeModel({
    nodes: [makeNode('Relu', ['x'], ['y'])],
    initializers: [],
    inputs: [value('x', 1, ['n', 8])],
    outputs: [value('y', 1, ['n', 8])],
  });
  writeModel(small, folder, 'a.onnx');
  slowModel(folder, 'b.onnx');
  const output = path.join(tempFolder(), 'out');
  const child = spawn(process.execPath, [...command, 'rewrite', folder, '-o', output], { stdio: 'pipe' });
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  while (!existsSync(path.join(output, 'a.onnx'))) await sleep(20);
  child.kill('SIGINT');
  t.is(await ended, 130, stderr);
  t.regex(stderr, /^interrupted: .*out holds a\.onnx whole, but not the other models, .*: repeat the command$/m);
  t.deepEqual(readdirSync(output), ['a.onnx']);
});
