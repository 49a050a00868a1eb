// Packs the package, installs the tarball in an empty project beside onnxruntime-node, and runs a session there: what a user gets.
// The session's model is written by hand, so that the test needs nothing but the package.
//   --from-source  then removes the prebuilt binaries and has the install script build them (for the CPU) from the tarball's sources
//   --keep         leaves the project in place and prints its folder
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const project = mkdtempSync(join(tmpdir(), 'flashllm-package-'));

function run(command, args, cwd = project) {
  const done = spawnSync(command, args, { cwd, encoding: 'utf8', maxBuffer: 1 << 26 });
  if (done.status === 0) return done.stdout;
  console.error(
    `${command} ${args.join(' ')} ended with ${done.status ?? done.signal}\n${done.stdout}\n${done.stderr}`,
  );
  process.exit(1);
}

function check(holds, what) {
  if (!holds) {
    console.error(`the installed package fails: ${what}`);
    process.exit(1);
  }
  console.log(`ok  ${what}`);
}

/** The peer and what it depends on, copied from this checkout: what is tested is our tarball, not the registry. */
function installPeer() {
  const modules = dirname(dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json')));
  for (const name of ['onnxruntime-node', 'onnxruntime-common']) {
    const folder = join(modules, name);
    const target = join(project, 'node_modules', name);
    cpSync(folder, target, { recursive: true, filter: (path) => !/\/bin\/napi-v\d+\/(darwin|win32)/.test(path) });
  }
}

/** y = x · Wᵀ with W = [[1, 0, 2], [0, 3, 0]], as ONNX protobuf put together by hand. */
const session = `
import { writeFileSync } from 'node:fs';
import ort from 'onnxruntime-node';
import { getEpName, getLibraryPath } from 'onnxruntime-ep-flashllm';
const varint = (n) => { const out = []; while (n > 127) { out.push((n % 128) | 128); n = Math.floor(n / 128); } return Buffer.from([...out, n]); };
const field = (number, bytes) => Buffer.concat([varint(number * 8 + 2), varint(bytes.length), bytes]);
const int = (number, n) => Buffer.concat([varint(number * 8), varint(n)]);
const text = (number, s) => field(number, Buffer.from(s));
const raw = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
const tensor = (name, type, dims, array) => field(5, Buffer.concat([...dims.map((d) => int(1, d)), int(2, type), text(8, name), field(9, raw(array))]));
const attribute = (name, n) => field(5, Buffer.concat([text(1, name), int(3, n), int(20, 2)]));
const value = (number, name, dims) => field(number, Buffer.concat([text(1, name), field(2, field(1, Buffer.concat([int(1, 1), field(2, Buffer.concat(dims.map((d) => field(1, int(1, d)))))])))]));
const values = new Float32Array(64); values.set([1, 2, 3]);
const bitmap = new Uint8Array(16); bitmap[0] = 5; bitmap[8] = 2;
const node = field(1, Buffer.concat([...['x', 'bitmap', 'row_offsets', 'values'].map((n) => text(1, n)), text(2, 'y'), text(4, 'SparseMatMul'),
  attribute('in_features', 3), attribute('out_features', 2), attribute('nnz', 3), attribute('format_version', 1), attribute('checksum', 0), text(7, 'ai.flashllm')]));
const graph = field(7, Buffer.concat([node, text(2, 'g'), tensor('bitmap', 2, [2, 8], bitmap), tensor('row_offsets', 6, [3], Int32Array.of(0, 2, 3)),
  tensor('values', 1, [64], values), value(11, 'x', [1, 3]), value(12, 'y', [1, 2])]));
const opset = (domain, version) => field(8, Buffer.concat([text(1, domain), int(2, version)]));
writeFileSync('model.onnx', Buffer.concat([int(1, 8), graph, opset('', 17), opset('ai.flashllm', 1)]));
const session = await ort.InferenceSession.create('model.onnx', { executionProviders: [{ name: 'flashllm', verifyChecksum: false }, 'cpu'] });
const { y } = await session.run({ x: new ort.Tensor('float32', Float32Array.of(1, 10, 100), [1, 3]) });
await session.release();
console.log(JSON.stringify({ y: [...y.data], ep: getEpName(), library: getLibraryPath() }));
`;

run('npm', ['pack', '--silent', '--pack-destination', project], root);
const tarball = readdirSync(project).find((name) => name.endsWith('.tgz'));
const listed = run('tar', ['tzf', tarball]).split('\n');
for (const needed of [
  'dist/provider/index.js',
  'dist/provider/index.d.ts',
  'serve/page/index.html',
  'provider/ep/exports.map',
  'provider/ep/options.inc',
  'CMakeLists.txt',
  'LICENSE',
]) {
  check(listed.includes(`package/${needed}`), `the tarball holds ${needed}`);
}
check(
  listed.some((name) => name.startsWith(`package/native/${process.platform}-${process.arch}/`)),
  'the tarball holds prebuilt binaries',
);
check(
  !listed.some((name) => /onnxruntime\.so|^package\/(tests|bench)\//.test(name)),
  'it holds neither ONNX Runtime nor tests',
);

writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'empty', private: true, type: 'module' }));
mkdirSync(join(project, 'node_modules'));
run('npm', ['install', '--no-audit', '--no-fund', '--legacy-peer-deps', `./${tarball}`]);
const withoutPeer = run(process.execPath, [
  '--input-type=module',
  '-e',
  "console.log((await import('onnxruntime-ep-flashllm')).getLibraryPath())",
]);
check(existsSync(withoutPeer.trim()), 'without onnxruntime-node, getLibraryPath() serves other bindings');
installPeer();
const installed = join(project, 'node_modules', 'onnxruntime-ep-flashllm');
check(!existsSync(join(installed, 'build')), 'installing took the prebuilt binaries');

writeFileSync(join(project, 'session.mjs'), session);
const runSession = () => JSON.parse(run(process.execPath, ['session.mjs']).trim().split('\n').at(-1));
const result = runSession();
check(result.y.join() === '201,30', `a session runs there and gives 201,30 (${result.y})`);
check(
  result.library.startsWith(project) && result.ep === 'FlashLLMExecutionProvider',
  'getLibraryPath() and getEpName() are exported',
);
const doctor = JSON.parse(run('npx', ['--no-install', 'flashllm', 'doctor', '--json']));
check(
  doctor.problems.every(({ severity }) => severity !== 'failure'),
  'flashllm doctor finds nothing to mend',
);
writeFileSync(
  join(project, 'require.cjs'),
  `require('onnxruntime-node'); const p = require('onnxruntime-ep-flashllm'); console.log(typeof p.getEpName);`,
);
if (Number(process.versions.node.split('.')[0]) >= 22 || process.features.require_module) {
  check(run(process.execPath, ['require.cjs']).includes('function'), 'CommonJS can require it');
}
const version = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version;
check(doctor.package.version === version, `the installed version is ${version}`);
if (process.argv.includes('--from-source')) {
  rmSync(join(installed, 'native'), { recursive: true });
  process.env.FLASHLLM_CUDA = 'OFF';
  run(process.execPath, ['scripts/build-native.mjs'], installed);
  check(runSession().y.join() === '201,30', 'a session runs with binaries built from the tarball');
}
if (process.argv.includes('--keep')) console.log(project);
else rmSync(project, { recursive: true, force: true });
