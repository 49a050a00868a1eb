// Runs a benchmark of the CUDA kernels and writes bench/results/<date>-<gpu>-<what>.json:
//   node bench/run-gpu.mjs spmm | dense-matmul | decode-chain  [options of the program, see its main.cu]
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';

const programs = {
  spmm: { folder: 'spmm', program: 'spmm_bench' },
  'dense-matmul': { folder: 'dense-matmul', program: 'dense_matmul_bench' },
  'decode-chain': { folder: 'decode', program: 'decode_chain' },
};
const [what, ...options] = process.argv.slice(2);
const chosen = programs[what];
if (chosen === undefined) {
  console.error(
    `Expected the name of a benchmark, one of ${Object.keys(programs).join(', ')}, but received ${what ?? 'none'}.`,
  );
  process.exit(2);
}

const root = join(import.meta.dirname, '..');
const results = join(root, 'bench', 'results');

function commit() {
  const git = (...args) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();
  try {
    const dirty = git('status', '--porcelain', '--', 'ops', 'bench/spmm', 'bench/dense-matmul', 'bench/decode') !== '';
    return git('rev-parse', '--short', 'HEAD') + (dirty ? '-dirty' : '');
  } catch {
    return 'unknown';
  }
}

mkdirSync(results, { recursive: true });
const written = join(results, `${what}.json.part`);
const bench = spawnSync(
  join(root, 'build', 'gpu-tools', 'bench', chosen.folder, chosen.program),
  ['--json', written, '--commit', commit(), ...options],
  { stdio: 'inherit' },
);
if (bench.error) throw bench.error;
if (bench.status !== 0) process.exit(bench.status ?? 1);
const { date, gpu, model } = JSON.parse(readFileSync(written, 'utf8'));
const name = gpu
  .replace(/^NVIDIA /, '')
  .split(' ')[0]
  .toLowerCase();
renameSync(written, join(results, `${date}-${name}-${what}${model === 'opt-30b' ? '' : `-${model}`}.json`));
