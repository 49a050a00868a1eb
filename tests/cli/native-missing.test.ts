// Commands that are to run flashllm where its binaries do not load: each ends with that, and none runs the model without it.
import { execFile } from 'node:child_process';
import { readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { shippedModel, shippedSparseModel } from '../../models/shipped.js';
import { tempFolder } from '../graph-passes/test-model.js';

const main = ['--import=tsx', resolve('cli/main.ts')];
const fixture = resolve('tests/fixtures/exports/preln-ts17-past-eager.onnx');

const broken = tempFolder();
for (const name of ['flashllm_node.node', 'libonnxruntime_ep_flashllm.so']) writeFileSync(join(broken, name), 'none');

/** `left` in the folder for temporary files: what a command has not removed. */
async function flashllm(...args: string[]): Promise<{ code: number; stdout: string; stderr: string; left: string[] }> {
  const temporary = tempFolder();
  const env = { ...process.env, FLASHLLM_NATIVE_DIR: broken, TMPDIR: temporary };
  const left = () => readdirSync(temporary).filter((name) => name.startsWith('flashllm'));
  try {
    return { code: 0, ...(await promisify(execFile)(process.execPath, [...main, ...args], { env })), left: left() };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, stdout, stderr, left: left() };
  }
}

const model = shippedSparseModel();
const commands: Record<string, string[]> = {
  verify: ['verify', fixture, fixture],
  bench: ['bench', model, '--repeats', '1'],
  'bench --ops': ['bench', model, '--ops', '--repeats', '1'],
  'bench --compare-stock': ['bench', model, '--compare', model, '--compare-stock'],
  eval: ['eval', model],
  'eval of a Hugging Face folder': ['eval', shippedModel()],
  demo: ['demo', '--tokens', '4', '--eval-tokens', '64'],
  serve: ['serve', model, '--port', '0'],
  generate: ['generate', model, 'Call me', '-n', '4'],
};

for (const [title, args] of Object.entries(commands))
  test(`${title} ends where flashllm does not load, and does not go on without it`, async (t) => {
    const { code, stdout, stderr, left } = await flashllm(...args);
    t.deepEqual([code, stdout, left], [1, '', []], stderr);
    t.regex(stderr, /error: onnxruntime-ep-flashllm: the native binaries could not be loaded: .*flashllm_node\.node/);
    t.regex(stderr, /\n {2}4\. If the binaries lie elsewhere, set FLASHLLM_NATIVE_DIR/);
  });

test('a session that is asked to run without flashllm needs no binaries', async (t) => {
  const { code, stdout, stderr } = await flashllm('generate', model, 'Call me', '-n', '2', '--stock');
  t.is(code, 0, stderr);
  t.regex(stdout, /^Call me/);
});
