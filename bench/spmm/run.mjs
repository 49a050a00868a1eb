// Runs the CUDA kernels' benchmark and writes bench/results/<date>-<gpu>-spmm.json. Options are spmm_bench's own (main.cu).
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..', '..');
const results = join(root, 'bench', 'results');

function commit() {
  const git = (...args) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();
  try {
    const dirty = git('status', '--porcelain', '--', 'ops/sparse-matmul', 'bench/spmm') !== '';
    return git('rev-parse', '--short', 'HEAD') + (dirty ? '-dirty' : '');
  } catch {
    return 'unknown';
  }
}

mkdirSync(results, { recursive: true });
const written = join(results, 'spmm.json.part');
const bench = spawnSync(
  join(root, 'build', 'gpu-tools', 'bench', 'spmm', 'spmm_bench'),
  ['--json', written, '--commit', commit(), ...process.argv.slice(2)],
  { stdio: 'inherit' },
);
if (bench.error) throw bench.error;
if (bench.status !== 0) process.exit(bench.status ?? 1);
const { date, gpu, model } = JSON.parse(readFileSync(written, 'utf8'));
const name = gpu
  .replace(/^NVIDIA /, '')
  .split(' ')[0]
  .toLowerCase();
renameSync(written, join(results, `${date}-${name}-spmm${model === 'opt-30b' ? '' : `-${model}`}.json`));
