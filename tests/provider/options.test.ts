import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test from 'ava';
import ort from 'onnxruntime-node';
import {
  doctorFacts,
  FlashLLMError,
  InvalidOptionError,
  NativeLoadError,
  OrtError,
  register,
} from '../../provider/index.js';
import { elementTypes, plainModel, sparseModel, valueInfo } from './sparse-model.js';

type SessionOptions = ort.InferenceSession.SessionOptions;

const executionProviders = ['flashllm', 'cpu'];
const sparse = { outFeatures: 8, inFeatures: 40 };
const { bytes } = sparseModel(sparse);
const x = new ort.Tensor('float32', new Float32Array(80).fill(1), [2, 40]);
const root = join(import.meta.dirname, '../..');
const folder = mkdtempSync(join(tmpdir(), 'flashllm-'));
test.after.always(() => rmSync(folder, { recursive: true, force: true }));

async function runs(options: SessionOptions, model: Uint8Array | string = bytes): Promise<number> {
  const session = await ort.InferenceSession.create(model as Uint8Array, { executionProviders, ...options });
  const { y } = await session.run({ x });
  await session.release();
  return y?.data.length ?? 0;
}

test('the usual session options are taken', async (t) => {
  const options: SessionOptions[] = [
    { intraOpNumThreads: 2, interOpNumThreads: 1, executionMode: 'parallel' },
    { graphOptimizationLevel: 'disabled' },
    { graphOptimizationLevel: 'basic' },
    { graphOptimizationLevel: 'extended' },
    { graphOptimizationLevel: 'layout' },
    { graphOptimizationLevel: 'all', executionMode: 'sequential' },
    { enableCpuMemArena: false, enableMemPattern: false },
    { logId: 'mine', logSeverityLevel: 3, logVerbosityLevel: 0 },
    { preferredOutputLocation: 'cpu' },
    {
      preferredOutputLocation: 'gpu-buffer',
      executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu'],
    },
    { extra: { session: { set_denormal_as_zero: '1', intra_op: { allow_spinning: false } } } },
  ];
  for (const one of options) t.is(await runs(one), 16, JSON.stringify(one));
});

test('bad session options are errors that name them', async (t) => {
  const bad: [unknown, RegExp][] = [
    [{ intraOpNumThreads: -1 }, /intraOpNumThreads.*-1/],
    [{ intraOpNumThreads: 1.5 }, /intraOpNumThreads.*1\.5/],
    [{ intraOpNumThreads: 2000 }, /^Expected an integer from 0 to 1024 for intraOpNumThreads but received 2000$/],
    [{ graphOptimizationLevel: 'most' }, /graphOptimizationLevel.*'most'/],
    [{ graphOptimizationLevel: 'toString' }, /graphOptimizationLevel/],
    [{ executionMode: 1 }, /executionMode/],
    [{ enableMemPattern: 'yes' }, /enableMemPattern.*'yes'/],
    [{ logSeverityLevel: 5 }, /logSeverityLevel.*5/],
    [{ logId: 3 }, /logId/],
    [{ preferredOutputLocation: 'texture' }, /preferredOutputLocation.*'texture'/],
    [{ extra: { a: { b: null } } }, /extra\.a\.b/],
    [{ externalData: [{ path: 'a' }] }, /externalData\[0\]\.data/],
    [{ freeDimensionOverrides: { n: 'two' } }, /freeDimensionOverrides\.n/],
  ];
  for (const [options, message] of bad)
    await t.throwsAsync(runs(options as SessionOptions), { instanceOf: InvalidOptionError, message });
});

test('provider options are checked, in TypeScript and in the library', async (t) => {
  const using = (provider: object) =>
    runs({ executionProviders: [{ name: 'flashllm', ...provider }, 'cpu'], logSeverityLevel: 4 });
  t.is(await using({ device: 'auto', isa: 'reference', threads: 3, verifyChecksum: true, logUnclaimed: false }), 16);
  t.is(
    await using({ device: 'cpu', expectedBatch: 16, expandedMegabytes: 100, jaggedMegabytes: 9, compactWeights: true }),
    16,
  );
  await t.throwsAsync(using({ devise: 'cpu' }), {
    instanceOf: InvalidOptionError,
    message:
      /'devise'.*device, deviceId, cudaGraph, expectedBatch, expandedMegabytes, jaggedMegabytes, compactWeights, isa, threads/,
  });
  await t.throwsAsync(using({ isa: 'altivec' }), {
    instanceOf: InvalidOptionError,
    message: /avx512, avx2, neon, reference.*'altivec'/,
  });
  await t.throwsAsync(using({ isa: process.arch === 'arm64' ? 'avx2' : 'neon' }), {
    code: 'ORT_INVALID_ARGUMENT',
    message: /this processor has: reference.*Use auto/,
  });
  await t.throwsAsync(using({ verifyChecksum: 1 }), { instanceOf: InvalidOptionError });
  await t.throwsAsync(using({ compactWeights: 1 }), {
    instanceOf: InvalidOptionError,
    message: /compactWeights/,
  });
  await t.throwsAsync(using({ expectedBatch: -1 }), { instanceOf: InvalidOptionError });
  await t.throwsAsync(using({ threads: 5000 }), {
    code: 'ORT_INVALID_ARGUMENT',
    message: /threads is '5000', expected an integer from 0 to 1024/,
  });
  if ((doctorFacts().cuda?.devices.length ?? 0) === 0) {
    await t.throwsAsync(using({ device: 'cuda' }), {
      code: 'ORT_INVALID_ARGUMENT',
      message: /device is 'cuda', but no GPU can be used: ./,
    });
  }
});

test('what is made of the table of options is up to date', (t) => {
  const checked = spawnSync(process.execPath, [join(root, 'scripts/generate-options.mjs'), '--check'], {
    encoding: 'utf8',
  });
  t.is(checked.status, 0, checked.stderr);
});

test('texts about options name others as Node does, and as other languages do beside it', (t) => {
  const read = (file: string) => readFileSync(join(root, file), 'utf8');
  const names = [...read('provider/ep-options.ts').matchAll(/key: '(\w+)', name: '(\w+_\w+)'/g)];
  t.true(names.length > 5);
  const comments =
    read('provider/ep-options.ts')
      .match(/^ +(\/\*\*|\*) .*$/gm)
      ?.join('\n') ?? '';
  t.true(comments.includes('jaggedMegabytes (elsewhere jagged_megabytes)'));
  for (const [, key, name] of names) {
    t.notRegex(comments.replaceAll(`${key} (elsewhere ${name})`, ''), new RegExp(`\\b${name}\\b`));
    const page = read('docs/options.md').replaceAll(new RegExp(`\`${key}\`( \\(|, | \\| )\`${name}\``, 'g'), '');
    t.notRegex(page, new RegExp(`\\b${name}\\b`));
  }
});

test('errors carry a stable code, and instanceof holds for each class alone', async (t) => {
  const missing = await t.throwsAsync(runs({ logSeverityLevel: 4 }, join(folder, 'none.onnx')), {
    code: 'ORT_NO_SUCHFILE',
  });
  t.true(missing instanceof OrtError && missing instanceof FlashLLMError && !(missing instanceof InvalidOptionError));
  await t.throwsAsync(runs({ logSeverityLevel: 4 }, new Uint8Array(100).fill(255)), { code: 'ORT_INVALID_PROTOBUF' });
  t.false(new Error('x') instanceof FlashLLMError);
  t.true(new NativeLoadError('x') instanceof FlashLLMError);
  t.false(new NativeLoadError('x') instanceof OrtError);
});

/** A model with its initializer in a file of its own. */
function externalModel(location: string): Uint8Array {
  const graph = {
    node: [{ opType: 'Add', input: ['x', 'w'], output: ['y'] }],
    initializer: [
      {
        name: 'w',
        dataType: elementTypes.FLOAT,
        dims: [40],
        dataLocation: 1,
        externalData: [
          { key: 'location', value: location },
          { key: 'offset', value: '0' },
          { key: 'length', value: '160' },
        ],
      },
    ],
    input: [valueInfo('x', elementTypes.FLOAT, ['n', 40])],
    output: [valueInfo('y', elementTypes.FLOAT, ['n', 40])],
  };
  return plainModel(graph);
}

test('external data comes from a file beside the model, from bytes, or from a named file', async (t) => {
  const weight = new Uint8Array(new Float32Array(40).fill(2).buffer);
  const data = join(folder, 'weights.bin');
  writeFileSync(data, weight);
  writeFileSync(join(folder, 'external.onnx'), externalModel('weights.bin'));
  t.is(await runs({}, join(folder, 'external.onnx')), 80);
  const model = externalModel('elsewhere.bin');
  t.is(await runs({ externalData: [{ path: 'elsewhere.bin', data: weight }] }, model), 80);
  t.is(await runs({ externalData: [{ path: 'elsewhere.bin', data: weight.buffer }] }, model), 80);
  t.is(await runs({ externalData: [{ path: 'elsewhere.bin', data }] }, model), 80);
  t.is(await runs({ externalData: [pathToFileURL(data).href] }, externalModel('weights.bin')), 80);
  await t.throwsAsync(runs({ externalData: [{ path: 'elsewhere.bin', data: `${data}.none` }] }, model), {
    code: 'ORT_NO_SUCHFILE',
    message: /weights\.bin\.none could not be opened/,
  });
});

test('an optimized model and a profile are written where asked', async (t) => {
  const optimized = join(folder, 'optimized.onnx');
  const graph = {
    node: [{ opType: 'Neg', input: ['x'], output: ['y'] }],
    input: [valueInfo('x', elementTypes.FLOAT, ['n', 40])],
    output: [valueInfo('y', elementTypes.FLOAT, ['n', 40])],
  };
  await runs({ optimizedModelFilePath: optimized }, plainModel(graph));
  t.true(existsSync(optimized));

  const session = await ort.InferenceSession.create(bytes, {
    executionProviders,
    enableProfiling: true,
    profileFilePrefix: join(folder, 'profile'),
  });
  session.startProfiling();
  await session.run({ x });
  session.endProfiling();
  await session.release();
  const file = readdirSync(folder).find((name) => name.startsWith('profile'));
  const events = JSON.parse(readFileSync(join(folder, file ?? 'none'), 'utf8')) as {
    name: string;
    args?: { provider?: string };
  }[];
  const kernel = events.find((event) => event.name === 'sparse_kernel_time');
  t.is(kernel?.args?.provider, 'FlashLLMExecutionProvider');
});

test('free dimensions can be fixed', async (t) => {
  const options = { executionProviders, freeDimensionOverrides: { n: 2 } };
  const session = await ort.InferenceSession.create(bytes, options);
  t.deepEqual(session.inputMetadata[0], { name: 'x', isTensor: true, type: 'float32', shape: [2, 40] });
  await session.release();
});

test('run options are taken and checked', async (t) => {
  const session = await ort.InferenceSession.create(bytes, { executionProviders });
  const { y } = await session.run(
    { x },
    { tag: 'one', logSeverityLevel: 3, logVerbosityLevel: 1, extra: { memory: { x: 1 } } },
  );
  t.is(y?.data.length, 16);
  await t.throwsAsync(session.run({ x }, { logSeverityLevel: 9 as 0 }), {
    instanceOf: InvalidOptionError,
    message: /logSeverityLevel/,
  });
  await session.release();
});

test('registering again, or with the module at hand, changes nothing', async (t) => {
  register();
  register(createRequire(import.meta.url)('onnxruntime-node'));
  t.is(await runs({}), 16);
});

test('the stock provider still runs beside ours', async (t) => {
  const graph = {
    node: [{ opType: 'Neg', input: ['x'], output: ['y'] }],
    input: [valueInfo('x', elementTypes.FLOAT, ['n', 40])],
    output: [valueInfo('y', elementTypes.FLOAT, ['n', 40])],
  };
  t.is(await runs({ executionProviders: ['cpu'] }, plainModel(graph)), 80);
  t.is(await runs({ executionProviders: ['flashllm'] }, plainModel(graph)), 80);
});

test('with logUnclaimed, why a node is not claimed is logged as a warning', (t) => {
  const model = join(folder, 'unclaimed.onnx');
  writeFileSync(model, sparseModel({ ...sparse, weightAsInput: true }).bytes);
  const script = `import ort from 'onnxruntime-node';
    await import(${JSON.stringify(pathToFileURL(join(root, 'provider/index.ts')).href)});
    const create = (logUnclaimed) =>
      ort.InferenceSession.create(${JSON.stringify(model)}, { executionProviders: [{ name: 'flashllm', logUnclaimed }] });
    for (const logged of [false, true]) {
      console.error('logged', logged);
      await create(logged).catch(() => {});
    }`;
  const args = ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', script];
  const { status, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
  t.is(status, 0, stderr);
  const [quiet = '', loud = ''] = stderr.split('logged true');
  const reason = "SparseMatMul node 'sparse' is not claimed: its input bitmap is not a constant initializer";
  t.false(quiet.includes(reason));
  t.true(loud.includes(reason), loud);
});
