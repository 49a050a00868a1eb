// Runs a benchmark of the CUDA kernels and writes bench/results/<date>-<gpu>-<what>.json:
//   node bench/run-gpu.mjs spmm | dense-matmul | decode-chain  [options of the program, see its --help]
// cuBLAS, cuBLASLt and cuSPARSELt are those that CUBLAS_LIBRARY, CUBLASLT_LIBRARY and CUSPARSELT_LIBRARY name, else those of the Python
// packages that come with torch, else the system's.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
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
    const folders = ['ops', 'bench/gpu', ...Object.values(programs).map(({ folder }) => `bench/${folder}`)];
    const dirty = git('status', '--porcelain', '--', ...folders) !== '';
    return git('rev-parse', '--short', 'HEAD') + (dirty ? '-dirty' : '');
  } catch {
    return 'unknown';
  }
}

/** Environment variables that name the libraries below Python's `nvidia` package, as far as it has them. */
function pythonLibraries() {
  const found = spawnSync('python3', ['-c', 'import nvidia; print(*nvidia.__path__, sep="\\n")'], { encoding: 'utf8' });
  const files = (found.status === 0 ? found.stdout.trim().split('\n') : []).flatMap((folder) =>
    readdirSync(folder, { recursive: true }).map((file) => join(folder, file)),
  );
  const named = Object.entries({
    CUBLAS_LIBRARY: /\/libcublas\.so\.\d+$/,
    CUBLASLT_LIBRARY: /\/libcublasLt\.so\.\d+$/,
    CUSPARSELT_LIBRARY: /\/libcusparseLt\.so\.\d+$/,
  }).map(([variable, name]) => [variable, files.find((file) => name.test(file))]);
  return Object.fromEntries(named.filter(([, file]) => file !== undefined));
}

mkdirSync(results, { recursive: true });
const written = join(results, `${what}.json.part`);
rmSync(written, { force: true });
const bench = spawnSync(
  join(root, 'build', 'gpu-tools', 'bench', chosen.folder, chosen.program),
  ['--json', written, '--commit', commit(), ...options],
  { stdio: 'inherit', env: { ...pythonLibraries(), ...process.env } },
);
if (bench.error) throw bench.error;
if (bench.status !== 0) {
  if (existsSync(written)) console.error(`What was measured is in ${written}.`);
  process.exit(bench.status ?? 1);
}
const { date, gpu, model } = JSON.parse(readFileSync(written, 'utf8'));
const name = gpu
  .replace(/^NVIDIA /, '')
  .split(' ')[0]
  .toLowerCase();
renameSync(written, join(results, `${date}-${name}-${what}${model === 'opt-30b' ? '' : `-${model}`}.json`));
