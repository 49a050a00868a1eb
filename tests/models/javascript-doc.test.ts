// The samples of docs/javascript.md, run one after the other against the built package (dist/, by `npm run build:ts`) as a user would.
import { spawnSync } from 'node:child_process';
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { temporaryFolder } from './support/checkpoints.js';

const root = join(import.meta.dirname, '../..');

/** What the samples print, in their order. */
const printed = [
  /^\[ 1, 3, 8192 \]\n$/,
  /^ \S.* (length|stop)\n\[\s+'.*',\s+'.*'\s+\]\n$/s,
  /^\S* \S.*\nthat is enough\n$/s,
  /^\d+\.\d 2044\n$/,
  /^0\.60\n\/.*\/dense\/model\.onnx \[.*'tokenizer\.json'.*\]\n$/s,
  /^\d+ of 25 layers, \d+ bytes before, \d+ after\ntrue \S+\n$/,
  /^true true ERR_FLASHLLM_USAGE\nunknown option 'max_new_tokens' of text generation, which may be meant for maxNewTokens; /,
  /^The state of our Union is \S/,
];

test('every sample runs, says nothing on standard error, and prints what it says', async (t) => {
  const text = await readFile(join(root, 'docs/javascript.md'), 'utf8');
  const samples = [...text.matchAll(/^```js\n(.*?)^```$/gms)].map(([, code]) => code as string);
  t.is(samples.length, printed.length);
  const project = await temporaryFolder();
  const modules = join(project, 'node_modules');
  await mkdir(join(modules, '@huggingface'), { recursive: true });
  for (const name of ['onnxruntime-node', '@huggingface/transformers'])
    await symlink(join(root, 'node_modules', name), join(modules, name));
  await symlink(root, join(modules, 'onnxruntime-ep-flashllm'));
  for (const [i, code] of samples.entries()) {
    const file = join(project, `sample-${i + 1}.mjs`);
    await writeFile(file, code);
    // Where there is a GPU, a warning says that a float32 model does not use it.
    const env = { ...process.env, CUDA_VISIBLE_DEVICES: '' };
    const { status, stdout, stderr } = spawnSync(process.execPath, [file], { cwd: project, encoding: 'utf8', env });
    t.deepEqual({ status, stderr }, { status: 0, stderr: '' }, code);
    t.regex(stdout, printed[i] as RegExp);
    t.log(stdout.trim());
  }
});
