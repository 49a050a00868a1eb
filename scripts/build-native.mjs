// The install script: makes sure that the two native binaries are there. Takes a prebuilt pair that loads (native/<platform>-<arch>/
// in the package, or the optional package onnxruntime-ep-flashllm-<platform>-<arch>), else builds them with CMake.
//   --force  builds (incrementally) whatever is there; so does a git checkout where CMake is at hand
//   --tests  builds the native unit tests as well
// Environment: ORT_INCLUDE_DIR (other headers of ONNX Runtime than third_party/'s), FLASHLLM_CUDA (AUTO, ON, OFF), FLASHLLM_BUILD_JOBS.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const platform = `${process.platform}-${process.arch}`;
const packageName = 'onnxruntime-ep-flashllm';
const force = process.argv.includes('--force') || (existsSync(join(root, '.git')) && has('cmake'));

/** Folders that may hold prebuilt binaries. */
function candidates() {
  const folders = [join(root, 'native', platform)];
  try {
    folders.push(dirname(createRequire(import.meta.url).resolve(`${packageName}-${platform}/package.json`)));
  } catch {
    // The platform's package is optional.
  }
  return folders.filter((folder) => existsSync(join(folder, 'flashllm_node.node')));
}

/** Whether both binaries of a folder load. In a process of its own: a binary of another system may crash the one that tries it. */
function loads(folder) {
  const code = `const addon = require(${JSON.stringify(join(folder, 'flashllm_node.node'))});
    JSON.parse(addon.describeLibrary(${JSON.stringify(join(folder, 'libonnxruntime_ep_flashllm.so'))}));`;
  const tried = spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' });
  if (tried.status !== 0) console.error(`flashllm: the binaries in ${folder} do not load: ${firstLine(tried.stderr)}`);
  return tried.status === 0;
}

function firstLine(text) {
  return text.split('\n').find((line) => line.includes('Error')) ?? text.split('\n')[0] ?? '';
}

function has(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

/** Ends the installation with what is missing and how to get it. */
function giveUp(what) {
  console.error(`
flashllm: the native binaries for ${platform} could not be built: ${what}
  1. Debian, Ubuntu: apt-get install -y cmake ninja-build g++     Fedora: dnf install -y cmake ninja-build gcc-c++
  2. CMake 3.22 or later and a compiler with C++17 (GCC 9, Clang 10 or later) must be on PATH; CXX names another compiler.
  3. For GPUs, nvcc (CUDA 12.4 or later) must be on PATH or CUDACXX name it; without it the build is for the CPU only.
  4. Then run: npm rebuild ${packageName} --foreground-scripts
`);
  process.exit(1);
}

function run(command, args, failure) {
  const done = spawnSync(command, args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  if (done.status === 0) return done.stdout;
  console.error(done.stdout?.split('\n').slice(-40).join('\n'), done.stderr);
  return giveUp(failure);
}

/** A generator may not change within a build folder, so that one which is configured keeps its own. */
function generator(folder) {
  if (existsSync(join(folder, 'CMakeCache.txt'))) return [];
  return has('ninja') ? ['-G', 'Ninja'] : [];
}

function build() {
  if (!has('cmake')) giveUp('cmake was not found');
  if (!has(process.env.CXX ?? 'c++') && !has('g++') && !has('clang++')) giveUp('no C++ compiler was found');
  const folder = join(root, 'build', 'native');
  const options = ['-DCMAKE_BUILD_TYPE=Release', `-DFLASHLLM_TESTS=${process.argv.includes('--tests') ? 'ON' : 'OFF'}`];
  for (const name of ['ORT_INCLUDE_DIR', 'FLASHLLM_CUDA']) {
    if (process.env[name]) options.push(`-D${name}=${process.env[name]}`);
  }
  const configured = run(
    'cmake',
    ['-S', root, '-B', folder, ...generator(folder), ...options],
    'CMake could not configure the build',
  );
  for (const line of configured.split('\n')) {
    if (line.includes('flashllm:')) console.log(line.replace(/^-- /, ''));
  }
  const jobs = process.env.FLASHLLM_BUILD_JOBS ?? String(availableParallelism());
  run('cmake', ['--build', folder, '--parallel', jobs], 'the compiler failed');
  if (!loads(join(root, 'native', platform))) giveUp('what was built does not load');
  console.log(`flashllm: built native/${platform}`);
}

if (process.platform !== 'linux') giveUp('only Linux is supported');
const prebuilt = force ? undefined : candidates().find(loads);
if (prebuilt === undefined) build();
else console.log(`flashllm: using the prebuilt binaries in ${prebuilt}`);
