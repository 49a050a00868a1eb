// `flashllm generate` and `bench` as processes: prompts from everywhere, what they print, exit codes.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, open, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { text as readAll } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { benchArguments, describeEnd } from '../../cli/commands/bench.js';
import { exportOpt } from '../../models/opt/export.js';
import { shippedModel } from '../../models/shipped.js';
import { temporaryFolder } from '../models/support/checkpoints.js';

const main = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));
let folder: string;
test.before(async () => {
  folder = await temporaryFolder();
  await exportOpt(shippedModel(), { output: folder });
});
test.after.always(() => rm(folder, { recursive: true }));

async function flashllm(args: string[], input = ''): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, ['--import=tsx', main, ...args]);
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name].on('data', (data) => {
      output[name] += data;
    });
  child.stdin.end(input);
  const [code] = (await once(child, 'close')) as [number];
  return { code, ...output };
}

test.serial('prompts come as arguments, from standard input and from files, and share a batch', async (t) => {
  const file = join(folder, 'prompt.txt');
  await writeFile(file, 'Call me\n');
  const args = ['generate', folder, 'Once upon', '-', '-f', file, '-n', '6', '--json', '--logprobs', '1'];
  const { code, stdout, stderr } = await flashllm(args, 'The state');
  t.is(code, 0, stderr);
  const { texts } = JSON.parse(stdout) as {
    texts: { prompt: string; newTokens: number; text: string; logprobs: unknown[] }[];
  };
  t.deepEqual(
    texts.map(({ prompt }) => prompt),
    ['Once upon', 'The state', 'Call me'],
  );
  t.true(texts.every(({ newTokens, logprobs }) => newTokens === 6 && logprobs.length === 6));
  // As echo and editors end a line; of more than one newline the others are meant.
  for (const newline of ['', '\n', '\r\n']) {
    const plain = await flashllm(['generate', folder, '-n', '6'], `Call me${newline}`);
    t.is(plain.stdout, `Call me${texts[2]?.text}\n`);
    t.regex(plain.stderr, /6 tokens, .* tokens\/s, the first after \d+ ms/);
  }
  await writeFile(file, 'Call me\n\n');
  const lines = await flashllm(['generate', folder, '-f', file, '-n', '6', '--json'], '');
  t.like(JSON.parse(lines.stdout), { texts: [{ prompt: 'Call me\n' }] });
});

test.serial('a prompt that leaves no room for a token does not spoil the times of others', async (t) => {
  const file = join(folder, 'long.txt');
  // With the token that begins every text, the 1,024 that the model takes.
  await writeFile(file, 'word'.padEnd(4 + 5 * 1022, ' word'));
  const { code, stdout, stderr } = await flashllm(['generate', folder, 'a', '-f', file, '-n', '3', '--json']);
  t.is(code, 0, stderr);
  t.like(JSON.parse(stdout), {
    model: folder,
    provider: 'flashllm',
    texts: [{ newTokens: 3 }, { newTokens: 0, timeToFirstTokenMs: null }],
  });
  const plain = await flashllm(['generate', folder, 'a', '-f', file, '-n', '3', '--no-prompt']);
  t.regex(plain.stderr, /^3 tokens, \d+\.\d tokens\/s, the first after \d+ ms\n$/);
});

test.serial('wrong options end with 2, a folder without a model with 1', async (t) => {
  for (const [flag, value] of Object.entries({ 'top-k': '-1', 'top-p': '2', temperature: '-1', stop: '' }))
    t.is((await flashllm(['generate', folder, 'a', `--${flag}`, value])).code, 2, flag);
  // The name of a property that every object has is no command either.
  const unknown = await flashllm(['constructor']);
  t.is(unknown.code, 2);
  t.regex(unknown.stderr, /unknown command 'constructor'/);
  const none = await flashllm(['generate', join(folder, 'none'), 'a']);
  t.is(none.code, 1);
  t.regex(none.stderr, /there is no folder .*none; expected one that flashllm export or rewrite wrote/);
  const unread = await flashllm(['generate', folder, '-f', join(folder, 'none.txt')]);
  t.is(unread.code, 1);
  t.regex(unread.stderr, /cannot read the prompt: .*none\.txt.*; name a UTF-8 file that is there/);
  const checkpoint = await flashllm(['generate', shippedModel(), 'a']);
  t.is(checkpoint.code, 1);
  t.regex(checkpoint.stderr, /has no model\.onnx .*flashllm export /);
  const file = await flashllm(['generate', join(folder, 'config.json'), 'a']);
  t.is(file.code, 1);
  t.regex(file.stderr, /config\.json is no folder; expected one/);
});

test.serial('serve says where it cannot listen, and what to change', async (t) => {
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  const { port } = other.address() as AddressInfo;
  // Before the model is read: of one that is not there it says the same.
  const { code, stdout, stderr } = await flashllm(['serve', join(folder, 'none'), '--port', String(port)]);
  t.deepEqual([code, stdout], [1, '']);
  t.regex(stderr, /cannot listen on 127\.0\.0\.1, port \d+: .*EADDRINUSE.*; choose another --host or --port/);
  other.close();
});

test.serial('of a damaged model one error is told, and before what is missing beside it', async (t) => {
  const copy = join(await temporaryFolder(), 'copy');
  await cp(folder, copy, { recursive: true });
  for (const name of ['tokenizer.json', 'vocab.json', 'merges.txt', 'config.json']) await rm(join(copy, name));
  const told = async (command: string, what: RegExp) => {
    const { code, stdout, stderr } = await flashllm([command, copy, ...(command === 'generate' ? ['a'] : [])]);
    t.deepEqual([code, stdout], [1, '']);
    // One line: ONNX Runtime's log would come before it.
    t.regex(stderr, /^error: .*\n$/);
    t.regex(stderr, what);
  };
  const advice = 'Copy it again with all of its files, or export or rewrite it again';
  const data = join(copy, 'model.onnx_data');
  await truncate(data, 5_000_000);
  for (const command of ['generate', 'eval', 'bench', 'serve'])
    await told(
      command,
      new RegExp(`model .*copy/model\\.onnx is damaged .* are outside ${data} \\(5000000 bytes\\)\\. ${advice}`),
    );
  await rm(data);
  await told('generate', /model\.onnx_data is missing\. Put the data file beside the model/);
  await truncate(join(copy, 'model.onnx'), 5000);
  await told('generate', /model\.onnx: a field at byte \d+ is longer than what holds it: the file is cut short/);
  await cp(join(folder, 'model.onnx'), join(copy, 'model.onnx'));
  await cp(join(folder, 'model.onnx_data'), data);
  await told('generate', /cannot read .*config\.json.*; expected .* that flashllm export or rewrite wrote/);
  await cp(join(folder, 'config.json'), join(copy, 'config.json'));
  await told('generate', /cannot read .*vocab\.json.*; expected tokenizer\.json .*: copy them there from/);
  await rm(copy, { recursive: true });
});

type Speed = Record<'batch' | 'timeToFirstTokenMs' | 'timePerTokenP50Ms' | 'timePerTokenP95Ms', number>;

test.serial('bench measures each batch, against another model, and draws a chart', async (t) => {
  const svg = join(folder, 'chart.svg');
  const sizes = ['--prompt-tokens', '8', '--new-tokens', '6', '--repeats', '1', '--batch', '1,3'];
  const { code, stdout, stderr } = await flashllm([
    'bench',
    folder,
    '--compare',
    folder,
    '--json',
    '--svg',
    svg,
    ...sizes,
  ]);
  t.is(code, 0, stderr);
  const { models } = JSON.parse(stdout) as {
    models: { model: string; provider: string; weightBytes: number; peakMemoryBytes: number; speeds: Speed[] }[];
  };
  t.is(models.length, 2);
  for (const { model, provider, weightBytes, peakMemoryBytes, speeds } of models) {
    t.deepEqual([model, provider], [folder, 'flashllm']);
    t.true(peakMemoryBytes > weightBytes);
    t.true(speeds.every((speed) => speed.timePerTokenP50Ms <= speed.timePerTokenP95Ms && speed.timeToFirstTokenMs > 0));
    // Six layers of 12 × 384² and the head of 8192 × 384, in float32.
    t.is(weightBytes, 4 * (6 * 12 * 384 ** 2 + 8192 * 384));
    t.deepEqual(
      speeds.map(({ batch }) => batch),
      [1, 3],
    );
    t.true(speeds.every((speed) => Object.values(speed).every((value) => value > 0)));
  }
  t.regex(await readFile(svg, 'utf8'), /^<svg .*sequences at once.*<\/svg>\n$/s);
});

test.serial('bench --compare tells of a Ctrl-C once, though two processes get it', async (t) => {
  const args = ['bench', folder, '--compare', folder, '--repeats', '10000'];
  // In a group of its own, as a shell starts a command.
  const child = spawn(process.execPath, ['--import=tsx', main, ...args], { detached: true });
  const { pid } = child as { pid: number };
  const ended = once(child, 'close');
  const stderr = readAll(child.stderr);
  // Node handles SIGINT always, SIGHUP (the lowest bit) only when the command does.
  const measures = async () => {
    const [other] = (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).split(' ').filter(Boolean);
    const status = other === undefined ? '' : await readFile(`/proc/${other}/status`, 'utf8').catch(() => '');
    return /^SigCgt:.*[13579bdf]$/m.test(status);
  };
  while (!(await measures())) await sleep(20);
  process.kill(-pid, 'SIGINT');
  t.deepEqual(await ended, [130, null]);
  t.is((await stderr).match(/interrupted/g)?.length, 1, await stderr);
});

test('bench measures another model in a process with the same options', (t) => {
  const options = {
    promptTokens: 8,
    newTokens: 6,
    batch: [1, 3],
    repeats: 2,
    threads: 1,
    device: 'cpu',
    ops: true,
  } as const;
  t.deepEqual(
    benchArguments('a', { ...options, batch: [1, 3], expectedBatch: 16, compactWeights: true }, true).join(' '),
    'bench a --json --stock --ops --prompt-tokens 8 --new-tokens 6 --batch 1,3 --repeats 2 --threads 1',
  );
  t.regex(
    benchArguments(
      'a',
      { ...options, batch: [1], expectedBatch: 16, expandedMegabytes: 512, jaggedMegabytes: 7 },
      false,
    ).join(' '),
    /^bench a --json --ops --prompt.* --device cpu --expected-batch 16 --expanded-megabytes 512 --jagged-megabytes 7$/,
  );
  t.regex(
    benchArguments('a', { ...options, batch: [1], compactWeights: true }, false).join(' '),
    / --compact-weights /,
  );
});

test('bench says what ended a measurement, also where no message is left', (t) => {
  t.is(describeEnd(1, null), 'ended with exit code 1; its message is above');
  t.is(describeEnd(null, 'SIGKILL'), 'was ended by SIGKILL, as a system does that is out of memory');
  t.is(describeEnd(null, 'SIGSEGV'), 'was ended by SIGSEGV');
});

test.serial('bench refuses a chart that cannot be written before it measures', async (t) => {
  for (const [svg, what] of [
    [join(folder, 'none', 'chart.svg'), /cannot write the chart: .*no such file.*; name a file/],
    [folder, /cannot write the chart: .* is a folder/],
  ] as const) {
    // 10,000 repeats would take hours.
    const { code, stdout, stderr } = await flashllm(['bench', folder, '--repeats', '10000', '--svg', svg]);
    t.deepEqual([code, stdout], [1, '']);
    t.regex(stderr, what);
  }
});

test.serial('a reader that leaves is no error of any command, and the work is done to its end', async (t) => {
  const output = join(await temporaryFolder(), 'sparse');
  for (const args of [
    ['--help'],
    ['inspect', folder],
    ['generate', folder, 'a', '-n', '4'],
    ['rewrite', folder, '-o', output, '--sparsity', '0.8', '--trace'],
  ]) {
    const child = spawn(process.execPath, ['--import=tsx', main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    child.stdout.destroy();
    let stderr = '';
    child.stderr.on('data', (data) => {
      stderr += data;
      // It reads no more of the trace, either.
      if (args[0] === 'rewrite') child.stderr.destroy();
    });
    const [code] = (await once(child, 'exit')) as [number];
    t.is(code, 0, stderr);
    t.notRegex(stderr, /EPIPE/);
  }
  t.deepEqual((await readdir(output)).filter((name) => name.startsWith('model')).sort(), [
    'model.onnx',
    'model.onnx_data',
  ]);
});

test.serial('output that cannot be written for another reason is an error, told once', async (t) => {
  const full = await open('/dev/full', 'w');
  const args = ['--import=tsx', main, 'inspect', folder];
  const child = spawn(process.execPath, args, { stdio: ['ignore', full.fd, 'pipe'] });
  const ended = once(child, 'exit');
  t.regex(await readAll(child.stderr as Readable), /^error: ENOSPC: .*\n$/);
  t.deepEqual(await ended, [1, null]);
  await full.close();
});

test.serial('bench --ops says where the time of a step of the largest batch goes', async (t) => {
  const sizes = ['--prompt-tokens', '8', '--new-tokens', '6', '--repeats', '1', '--batch', '1,3'];
  const { code, stdout, stderr } = await flashllm(['bench', folder, '--ops', '--device', 'cpu', ...sizes]);
  t.is(code, 0, stderr);
  t.regex(stdout, /A decode step of 3 sequences with 14 tokens each; times of the processor\./);
  t.regex(stdout, /^LayerNormalization +CPU +13 /m);
  t.regex(stdout, /^all .* 100\.0 %/m);
});

test.serial('no telemetry of ONNX Runtime is sent unless the environment asks for it', async (t) => {
  const temporary = await temporaryFolder();
  const { ORT_DISABLE_TELEMETRY: _, ...env } = process.env;
  const child = spawn(process.execPath, ['--import=tsx', main, 'generate', folder, 'a', '-n', '2'], {
    env: { ...env, TMPDIR: temporary },
    stdio: 'ignore',
  });
  t.deepEqual(await once(child, 'exit'), [0, null]);
  // Where it is on, an identity of the session (.ses) and a log lie here.
  const left = (await readdir(temporary)).filter((name) => name === '.ses' || name.startsWith('mat-debug'));
  t.deepEqual(left, []);
});
