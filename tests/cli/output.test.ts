// Outputs that cannot be written: each command names what the user gave, and leaves nothing there.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import test from 'ava';
import { withTemporaryFolder } from '../../cli/temporary-folder.js';
import { shippedModel, shippedSparseModel } from '../../models/shipped.js';
import { tempFolder } from '../graph-passes/test-model.js';

const main = ['--import=tsx', resolve('cli/main.ts')];

/** Runs a command that may write no file of more than 1 MB: to it that is as a disk that is full. */
function flashllm(args: readonly string[], environment: Record<string, string> = {}) {
  const limited = ['-c', 'ulimit -f 1000; exec "$@"', 'bash', process.execPath, ...main, ...args];
  const env = { ...process.env, ...environment };
  const { status, stdout, stderr } = spawnSync('bash', limited, { encoding: 'utf8', env });
  return { status, stdout, stderr };
}

test('export, rewrite and demo name the output that has no room', (t) => {
  const folder = tempFolder();
  const output = join(folder, 'a', 'out');
  for (const [args, file] of [
    [['export', shippedModel(), '-o', output], join(output, 'model.onnx')],
    [['rewrite', shippedSparseModel(), '-o', output], join(output, 'model.onnx')],
    [['demo', '-o', output], join(output, 'dense', 'model.onnx')],
  ] as const) {
    const { status, stderr } = flashllm(args);
    t.deepEqual(
      [status, stderr],
      [1, `error: cannot write to ${file}: file too large (EFBIG); choose another folder\n`],
    );
    t.deepEqual(readdirSync(folder), []);
  }
});

test('rewrite of a Hugging Face folder names the export on the way, prune its output', (t) => {
  const folder = tempFolder();
  const output = join(folder, 'out');
  const rewritten = flashllm(['rewrite', shippedModel(), '-o', output]);
  t.is(rewritten.status, 1);
  t.regex(
    rewritten.stderr,
    /^error: cannot write to .*out\.onnx-\w+\/model\.onnx: file too large \(EFBIG\); choose another/,
  );
  t.deepEqual(readdirSync(folder), []);
  const few = ['--sequences', '2', '--length', '32'];
  const pruned = flashllm(['prune', shippedModel(), '-o', output, '--sparsity', '0.5', ...few]);
  t.is(pruned.status, 1);
  t.regex(pruned.stderr, /^error: cannot write to .*out: file too large \(EFBIG\); choose another folder\n$/);
});

test('eval and demo say that another place for temporary files can be chosen', (t) => {
  const temporary = tempFolder();
  for (const args of [['eval', shippedModel()], ['demo']]) {
    const { status, stderr } = flashllm(args, { TMPDIR: temporary });
    t.is(status, 1);
    t.regex(
      stderr,
      /^error: cannot write to .*\/flashllm-\w+-\w+\/.*model\.onnx: .*; choose another folder for temporary files, by TMPDIR\n$/,
    );
    t.deepEqual(
      readdirSync(temporary).filter((name) => name.startsWith('flashllm')),
      [],
    );
  }
});

test.serial('a place for temporary files that is not there is named', async (t) => {
  const none = join(tempFolder(), 'none');
  const { TMPDIR } = process.env;
  process.env.TMPDIR = none;
  try {
    await t.throwsAsync(
      withTemporaryFolder('flashllm-eval-', async () => {}),
      {
        name: 'OutputError',
        message: new RegExp(
          `^cannot make a folder in ${none}: .*; choose another folder for temporary files, by TMPDIR$`,
        ),
      },
    );
  } finally {
    if (TMPDIR === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = TMPDIR;
  }
});

test('a place that must not be written to is named', (t) => {
  for (const args of [
    ['export', shippedModel()],
    ['rewrite', shippedSparseModel()],
    ['rewrite', shippedModel()],
  ]) {
    const { status, stderr } = flashllm([...args, '-o', '/sys/flashllm/out']);
    t.is(status, 1);
    t.regex(stderr, /^error: cannot write to \/sys\/flashllm.*: .* \((EPERM|EACCES|EROFS)\); choose another folder\n$/);
  }
});
