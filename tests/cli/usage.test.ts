// Command lines with options that would be ignored: each is refused, and nothing is done.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { type Command, CommanderError } from 'commander';
import { benchCommand } from '../../cli/commands/bench.js';
import { demoCommand } from '../../cli/commands/demo.js';
import { evalCommand } from '../../cli/commands/eval.js';
import { exportCommand } from '../../cli/commands/export.js';
import { generateCommand } from '../../cli/commands/generate.js';
import { inspectCommand } from '../../cli/commands/inspect.js';
import { pruneCommand } from '../../cli/commands/prune.js';
import { rewriteCommand } from '../../cli/commands/rewrite.js';
import { serveCommand } from '../../cli/commands/serve.js';
import { verifyCommand } from '../../cli/commands/verify.js';
import { shippedModel } from '../../models/shipped.js';
import { tempFolder } from '../graph-passes/test-model.js';

const commands = {
  bench: benchCommand,
  demo: demoCommand,
  eval: evalCommand,
  export: exportCommand,
  generate: generateCommand,
  inspect: inspectCommand,
  prune: pruneCommand,
  rewrite: rewriteCommand,
  serve: serveCommand,
  verify: verifyCommand,
};

/** What a command that is refused writes. The folders that it names do not exist: going on would fail otherwise. */
async function refused(name: keyof typeof commands, args: readonly string[]): Promise<string> {
  let written = '';
  const command: Command = commands[name]().exitOverride();
  command.configureOutput({
    writeErr: (text) => {
      written += text;
    },
  });
  try {
    await command.parseAsync(args, { from: 'user' });
  } catch (error) {
    // main.ts ends with 2 of any of them.
    if (error instanceof CommanderError && error.exitCode !== 0) return written;
    throw error;
  }
  return '';
}

const cases: [keyof typeof commands, string[], RegExp][] = [
  ['generate', ['none', 'a', '--top-p', '0.9'], /^error: --top-p says how tokens are drawn: give --temperature/],
  ['generate', ['none', 'a', '--seed', '1'], /^error: --seed says how tokens are drawn/],
  ['generate', ['none', 'a', '--logprobs', '2'], /^error: --logprobs goes with --json only/],
  [
    'generate',
    ['none', 'a', '--stock', '--device', 'cpu'],
    /^error: --device is of flashllm, which --stock leaves out/,
  ],
  ['eval', ['none', '--stock', '--device', 'cpu'], /^error: --device is of flashllm, which --stock leaves out/],
  ['bench', ['none', '--stock', '--expected-batch', '8'], /^error: --expected-batch is of flashllm/],
  ['generate', ['none', 'a', '--stock', '--compact-weights'], /^error: --compact-weights is of flashllm/],
  ['bench', ['none', '--compare-stock'], /^error: --compare-stock goes with --compare only/],
  ['serve', ['none', '--compare-name', 'a'], /^error: --compare-name goes with --compare only/],
  ['serve', ['none', '--compare', 'a/none'], /^error: both models are called 'none'; give one of them a --name/],
  ['serve', ['none', '--api-key', ''], /^error: --api-key is empty; give a key, or leave it out/],
  [
    'serve',
    ['none', '--api-key', 'a\n'],
    /^error: --api-key ends with a newline, expected printable ASCII .* give another/,
  ],
  ['serve', ['none', '--api-key', 'ab\r\n'], /^error: --api-key ends with a newline, expected printable ASCII/],
  ['serve', ['none', '--api-key', 'schlüssel'], /^error: --api-key has another character at place 5, expected/],
  ['serve', ['none', '--api-key', 'a b\n'], /^error: --api-key has another character at place 2, expected/],
  ['verify', ['none', 'none', '--inputs', 'none', '--past', '2'], /^error: --past is of random inputs, which --inputs/],
  [
    'prune',
    ['none', '-o', 'out', '--sparsity', '0.5', '--scope', 'row'],
    /^error: --scope goes with --method magnitude/,
  ],
  ['prune', ['none', '-o', 'out', '--sparsity', '0.5', '--iterations', '2'], /^error: --iterations goes with .* admm/],
  ['rewrite', ['none', '-o', 'out', '--scope', 'row'], /^error: --scope says how to prune: give --sparsity/],
  [
    'rewrite',
    [shippedModel(), '--dry-run', '--sparsity', '0.5', '--exclude', '*fc2*'],
    /^error: --exclude does not choose what is pruned of a Hugging Face folder: .* --layer-sparsity/,
  ],
  [
    'rewrite',
    ['none', '-o', 'a/out.onnx'],
    /^error: -o a\/out\.onnx is a file's name, expected a folder's: give -o a\/out; models in it/,
  ],
  ['rewrite', ['none', '-o', '.ONNX'], /^error: -o \.ONNX is a file's name, expected a folder's: give -o output;/],
  ['export', ['none', '-o', 'out.onnx'], /^error: -o out\.onnx is a file's name, expected a folder's: give -o out;/],
  // As a variable gives that is not set: a path would be the folder that the command runs in.
  ['bench', [''], /^error: .* for argument 'folder'\. Expected a folder\./],
  ['bench', ['none', '--compare', ''], /^error: option '--compare <folder>' .* Expected a folder\./],
  ['bench', ['none', '--svg', ''], /^error: option '--svg <file>' .* Expected a file\./],
  ['demo', ['--model', ''], /^error: option '--model <hf-folder>' .* Expected a folder\./],
  ['eval', [''], /^error: .* for argument 'model'\. Expected a folder\./],
  ['eval', ['none', '--text', ''], /^error: option '--text <file>' .* Expected a file\./],
  ['export', ['', '-o', 'out'], /^error: .* for argument 'hf-folder'\. Expected a folder\./],
  ['generate', ['', 'a'], /^error: .* for argument 'folder'\. Expected a folder\./],
  ['inspect', [''], /^error: .* for argument 'model'\. Expected a model, as a file or a folder\./],
  ['prune', ['', '-o', 'out', '--sparsity', '0.5'], /^error: .* for argument 'hf-folder'\. Expected a folder\./],
  [
    'prune',
    ['none', '-o', 'out', '--sparsity', '0.5', '--calibration', ''],
    /^error: option '--calibration <file>' .* Expected a file\./,
  ],
  ['rewrite', ['', '-o', 'out'], /^error: .* for argument 'model'\. Expected a model, as a file or a folder\./],
  ['serve', [''], /^error: .* for argument 'folder'\. Expected a folder\./],
  ['serve', ['none', '--name', ''], /^error: option '--name <model>' argument '' is invalid\. Expected a name\./],
  ['serve', ['none', '--compare', 'b', '--compare-name', ' '], /^error: option '--compare-name .* Expected a name\./],
  ['serve', ['none', '--compare', ''], /^error: option '--compare <folder>' .* Expected a folder\./],
  ['serve', ['none', '--host', ''], /^error: option '--host <address>' .* Expected an address\./],
  ['verify', ['', 'none'], /^error: .* for argument 'original'\. Expected a model, as a file or a folder\./],
  ['verify', ['none', ''], /^error: .* for argument 'rewritten'\. Expected a model, as a file or a folder\./],
  ['verify', ['none', 'none', '--inputs', ''], /^error: option '--inputs <file>' .* Expected a file\./],
];

for (const [name, args, message] of cases)
  test(`${name} ${args.map((arg) => arg || "''").join(' ')}`, async (t) => {
    t.regex(await refused(name, args), message);
  });

test('a folder that is called as a file is an output, where there is one', async (t) => {
  const output = join(tempFolder(), 'out.onnx');
  t.regex(await refused('rewrite', ['/nowhere', '-o', output]), /is a file's name/);
  mkdirSync(output);
  await t.throwsAsync(refused('rewrite', ['/nowhere', '-o', output]), { message: /^\/nowhere does not exist/ });
});

test.serial('serve with a key in its environment that is none', async (t) => {
  try {
    process.env.FLASHLLM_API_KEY = '';
    t.regex(await refused('serve', ['none']), /^error: FLASHLLM_API_KEY is empty; give a key/);
    process.env.FLASHLLM_API_KEY = 'sesame\n';
    t.regex(await refused('serve', ['none']), /^error: FLASHLLM_API_KEY ends with a newline/);
  } finally {
    delete process.env.FLASHLLM_API_KEY;
  }
});
