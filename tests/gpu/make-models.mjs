// Makes the models of tests/gpu/ep_test.py in build/gpu-models: opt-14m in float16, dense and at 80 % and 50 % zeros.
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const folder = join(root, 'build', 'gpu-models');

function flashllm(...args) {
  const done = spawnSync(process.execPath, [join(root, 'dist', 'cli', 'main.js'), ...args], { stdio: 'inherit' });
  if (done.status !== 0) process.exit(done.status ?? 1);
}

rmSync(folder, { recursive: true, force: true });
const dense = join(folder, 'dense16');
flashllm('export', join(root, 'models', 'opt-14m'), '-o', dense, '--dtype', 'float16');
for (const zeros of [80, 50])
  flashllm('rewrite', dense, '-o', join(folder, `sparse${zeros}`), '--sparsity', String(zeros / 100));
