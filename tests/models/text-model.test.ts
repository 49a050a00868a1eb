// How a model folder is opened: in which session, from which files.
import { spawnSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test from 'ava';
import { binaries } from '../../provider/library.js';
import { temporaryFolder } from './support/checkpoints.js';

const root = join(import.meta.dirname, '../..');

/** What a program of its own prints that imports the models alone, not the package's root. */
function program(script: string, environment: Record<string, string> = {}): { stdout: string; stderr: string } {
  const source = (path: string) => JSON.stringify(pathToFileURL(join(root, path)).href);
  const code = `const { openTextModel, shippedSparseModel } = await import(${source('models/index.ts')});
    const { prepareRun } = await import(${source('provider/backend.ts')});
    // Another backend's sessions have no prepared runs.
    const isOurs = ({ session }) => { try { return prepareRun(session, {}, {}) !== undefined; } catch { return true; } };
    const open = (options) => openTextModel(shippedSparseModel(), options);
    ${script}`;
  const args = ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', code];
  const env = { ...process.env, ...environment };
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8', env });
  if (status !== 0) throw new Error(stderr);
  return { stdout, stderr };
}

test('a model runs in our provider where it is named or nothing is said, also without an import of the package', (t) => {
  const { stdout, stderr } = program(`
    for (const options of [undefined, { intraOpNumThreads: 1 }, { executionProviders: ['flashllm', 'cpu'] }, { executionProviders: ['cpu'] }]) {
      const model = await open(options);
      console.log(isOurs(model));
      await model.session.release();
    }`);
  t.deepEqual(stdout.trim().split('\n'), ['true', 'true', 'true', 'false']);
  t.is(stderr, '');
});

test('binaries that do not load are an error where our provider is asked for, not a session without it', async (t) => {
  const folder = await temporaryFolder();
  for (const name of Object.values(binaries)) await writeFile(join(folder, name), 'no library');
  const script = `
    for (const executionProviders of [undefined, ['cpu']])
      console.log(await open(executionProviders && { executionProviders }).then(() => 'opened', ({ name, code }) => name + ' ' + code));`;
  const { stdout, stderr } = program(script, { FLASHLLM_NATIVE_DIR: folder });
  t.deepEqual(stdout.trim().split('\n'), ['NativeLoadError ERR_FLASHLLM_LOAD', 'opened']);
  t.is(stderr, '');
});
