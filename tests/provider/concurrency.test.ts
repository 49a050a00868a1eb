import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test from 'ava';
import ort from 'onnxruntime-node';
import { OrtError } from '../../provider/index.js';
import { elementTypes, plainModel, sparseModel, valueInfo } from './sparse-model.js';

const executionProviders = ['flashllm', 'cpu'];
const sparse = { outFeatures: 64, inFeatures: 128 };
const folder = mkdtempSync(join(tmpdir(), 'flashllm-'));
const modelPath = join(folder, 'sparse.onnx');
writeFileSync(modelPath, sparseModel(sparse).bytes);
test.after.always(() => rmSync(folder, { recursive: true, force: true }));

/** A model that multiplies x by itself `steps` times: `steps` nodes, each of size³ operations. */
function slowModel(size: number, steps: number): Uint8Array {
  const node = Array.from({ length: steps }, (_, i) => ({
    opType: 'MatMul',
    input: [i === 0 ? 'x' : `t${i}`, 'x'],
    output: [i === steps - 1 ? 'y' : `t${i + 1}`],
  }));
  const dims = [size, size];
  return plainModel({
    node,
    input: [valueInfo('x', elementTypes.FLOAT, dims)],
    output: [valueInfo('y', elementTypes.FLOAT, dims)],
  });
}

const identityOf = (size: number) => {
  const data = new Float32Array(size * size);
  for (let i = 0; i < size; i += 1) data[i * size + i] = 1;
  return new ort.Tensor('float32', data, [size, size]);
};

test.serial('a long run leaves the event loop free', async (t) => {
  const session = await ort.InferenceSession.create(slowModel(700, 80), { executionProviders, intraOpNumThreads: 1 });
  let ticks = 0;
  let longest = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    ticks += 1;
  }, 5);
  const start = performance.now();
  await session.run({ x: identityOf(700) });
  const length = performance.now() - start;
  clearInterval(timer);
  await session.release();
  t.true(length > 50, `the run took only ${length} ms, too short to show anything`);
  // A blocked loop would tick once, after the run. Half of the ticks may be lost to other processes on the machine.
  t.true(ticks >= length / 5 / 4, `${ticks} ticks in ${length} ms`);
  t.true(longest < length / 2, `one pause of ${longest} ms in a run of ${length} ms`);
});

test.serial('many runs of several sessions at once give each its own result', async (t) => {
  const sessions = await Promise.all(
    [1, 2, 3].map((seed) =>
      ort.InferenceSession.create(sparseModel({ ...sparse, seed }).bytes, { executionProviders }),
    ),
  );
  const inputs = Array.from(
    { length: 20 },
    (_, i) => new ort.Tensor('float32', new Float32Array(128).fill(i + 1), [1, 128]),
  );
  const alone: ort.Tensor[][] = [];
  for (const session of sessions) {
    const outputs: ort.Tensor[] = [];
    for (const x of inputs) outputs.push((await session.run({ x })).y as ort.Tensor);
    alone.push(outputs);
  }
  const together = await Promise.all(sessions.map((session) => Promise.all(inputs.map((x) => session.run({ x })))));
  together.forEach((outputs, s) => {
    outputs.forEach(({ y }, i) => {
      t.deepEqual(y?.data, alone[s]?.[i]?.data);
    });
  });
  await Promise.all(sessions.map((session) => session.release()));
});

test.serial('releasing a session waits for its runs; afterwards it refuses to run', async (t) => {
  const session = await ort.InferenceSession.create(slowModel(300, 20), { executionProviders });
  const x = identityOf(300);
  const order: string[] = [];
  const runs = [1, 2, 3].map(() => session.run({ x }).then((result) => order.push(`run ${result.y?.dims}`)));
  // A run's result passes through more promises than a release: where both end at once, it may come a moment later.
  const moment = () => new Promise((done) => setImmediate(done));
  const releases = [session.release(), session.release()].map((release) =>
    release.then(moment).then(() => order.push('released')),
  );
  await t.throwsAsync(session.run({ x }), { instanceOf: OrtError, message: /has been released/ });
  await Promise.all([...runs, ...releases]);
  t.deepEqual(order.slice(0, 3), ['run 300,300', 'run 300,300', 'run 300,300']);
  t.throws(() => session.endProfiling(), { message: /has been released/ });
  await session.release();
});

test.serial('a signal ends a run early, with its reason', async (t) => {
  const session = await ort.InferenceSession.create(slowModel(700, 60), { executionProviders, intraOpNumThreads: 1 });
  const controller = new AbortController();
  const reason = new Error('enough');
  setTimeout(() => controller.abort(reason), 20);
  const options = { signal: controller.signal };
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on('warning', onWarning);
  const others = Promise.allSettled(Array.from({ length: 12 }, () => session.run({ x: identityOf(700) }, options)));
  t.is(await t.throwsAsync(session.run({ x: identityOf(700) }, options)), reason);
  t.is(await t.throwsAsync(session.run({ x: identityOf(700) }, options)), reason);
  for (const { status } of await others) t.is(status, 'rejected');
  process.off('warning', onWarning);
  t.deepEqual(warnings, []);
  await t.throwsAsync(session.run({ x: identityOf(700) }, { terminate: true }), { message: /terminate/i });
  await session.release();
});

/** Runs a script in a Node process of its own, with the provider imported as `ort` and `create(path or bytes)`. */
type Ended = { status: number | null; signal: string | null; stdout: string; stderr: string };

/** A module that has the provider and `create`, a model's path and an input of it before `body`. */
function writeScript(body: string): string {
  const provider = pathToFileURL(join(import.meta.dirname, '../../provider/index.ts'));
  const file = join(folder, `script-${Math.random().toString(36).slice(2)}.mjs`);
  // Registered in the script, since Node 20 does not hand --import loaders on to worker threads.
  const tsx = import.meta.resolve('tsx/esm/api');
  const text = `import { register } from ${JSON.stringify(tsx)};
    register();
    import { createRequire } from 'node:module';
    const require = createRequire(${JSON.stringify(import.meta.url)});
    const ort = require('onnxruntime-node');
    await import(${JSON.stringify(provider.href)});
    const create = (model) => ort.InferenceSession.create(model, { executionProviders: ['flashllm', 'cpu'] });
    const modelPath = ${JSON.stringify(modelPath)};
    const x = new ort.Tensor('float32', new Float32Array(128).fill(1), [1, 128]);
    ${body}`;
  writeFileSync(file, text);
  return file;
}

function runScript(body: string): Ended {
  return runFile(writeScript(body));
}

function runFile(file: string): Ended {
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['--expose-gc', file], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  return { status, signal, stdout, stderr };
}

test.serial('a process ends by itself with sessions that were not released', (t) => {
  const result = runScript(`const session = await create(modelPath);
    const { y } = await session.run({ x });
    console.log(y.dims.join());`);
  t.deepEqual({ status: result.status, stdout: result.stdout }, { status: 0, stdout: '1,64\n' }, result.stderr);
});

test.serial('process.exit() during runs ends cleanly', (t) => {
  const slow = join(folder, 'slow.onnx');
  writeFileSync(slow, slowModel(500, 40));
  const result = runScript(`const session = await create(${JSON.stringify(slow)});
    const big = new ort.Tensor('float32', new Float32Array(250000), [500, 500]);
    for (let i = 0; i < 4; i += 1) session.run({ x: big }).catch(() => {});
    create(modelPath).catch(() => {});
    setTimeout(() => process.exit(7), 30);`);
  t.deepEqual({ status: result.status, signal: result.signal }, { status: 7, signal: null }, result.stderr);
});

test.serial('a pending run keeps the process alive, an idle session does not', (t) => {
  const result = runScript(`const session = await create(modelPath);
    session.run({ x }).then(() => console.log('ran'));`);
  t.deepEqual({ status: result.status, stdout: result.stdout }, { status: 0, stdout: 'ran\n' }, result.stderr);
});

test.serial('worker threads run sessions beside the main thread, and may be terminated during a run', (t) => {
  const slow = join(folder, 'slow-worker.onnx');
  writeFileSync(slow, slowModel(400, 40));
  const result = runScript(`const { isMainThread, parentPort, Worker, workerData } = require('node:worker_threads');
    if (isMainThread) {
      const session = await create(modelPath);
      const { y } = await session.run({ x });
      const results = await Promise.all([1, 2, 3].map(() => new Promise((resolve, reject) => {
        const worker = new Worker(new URL(import.meta.url), { workerData: 'run' });
        worker.on('message', resolve);
        worker.on('error', reject);
      })));
      for (const data of results) if (data.join() !== Array.from(y.data).join()) throw new Error('a worker got another result');
      const busy = new Worker(new URL(import.meta.url), { workerData: 'busy' });
      await new Promise((resolve) => busy.on('message', resolve));
      await busy.terminate();
      console.log((await session.run({ x })).y.dims.join());
    } else if (workerData === 'run') {
      const session = await create(modelPath);
      parentPort.postMessage(Array.from((await session.run({ x })).y.data));
    } else {
      const session = await create(${JSON.stringify(slow)});
      const big = new ort.Tensor('float32', new Float32Array(160000), [400, 400]);
      for (let i = 0; i < 3; i += 1) session.run({ x: big }).catch(() => {});
      parentPort.postMessage('running');
    }`);
  t.deepEqual({ status: result.status, stdout: result.stdout }, { status: 0, stdout: '1,64\n' }, result.stderr);
});

test.serial('a worker may be terminated while a prepared run is under way whose session is being released', (t) => {
  const slow = join(folder, 'slow-prepared.onnx');
  writeFileSync(slow, slowModel(400, 100));
  const backend = pathToFileURL(join(import.meta.dirname, '../../provider/backend.ts'));
  const result = runScript(`const { isMainThread, parentPort, Worker } = require('node:worker_threads');
    if (isMainThread) {
      const worker = new Worker(new URL(import.meta.url));
      await new Promise((resolve) => worker.on('message', resolve));
      await worker.terminate();
      console.log('terminated');
    } else {
      const { prepareRun } = await import(${JSON.stringify(backend.href)});
      const session = await create(${JSON.stringify(slow)});
      const square = () => new ort.Tensor('float32', new Float32Array(160000), [400, 400]);
      prepareRun(session, { x: square() }, { y: square() }).start().catch(() => {});
      session.release();
      // When the release waits for the run.
      setTimeout(() => parentPort.postMessage('running'), 20);
    }`);
  t.deepEqual({ status: result.status, stdout: result.stdout }, { status: 0, stdout: 'terminated\n' }, result.stderr);
});

test.serial('the addon outlives the workers that alone have loaded it', (t) => {
  const slow = join(folder, 'slow-alone.onnx');
  writeFileSync(slow, slowModel(400, 40));
  const worker = writeScript(`const { parentPort } = await import('node:worker_threads');
    const session = await create(${JSON.stringify(slow)});
    const run = session.run({ x: new ort.Tensor('float32', new Float32Array(160000), [400, 400]) });
    parentPort.postMessage('running');
    await run;`);
  const main = join(folder, 'main.mjs');
  writeFileSync(
    main,
    `import { Worker } from 'node:worker_threads';
    for (let i = 0; i < 2; i += 1) {
      const worker = new Worker(new URL(${JSON.stringify(pathToFileURL(worker).href)}));
      await new Promise((resolve) => worker.once('message', resolve));
      await worker.terminate();
    }
    // Longer than its idle threads wait for work.
    await new Promise((resolve) => setTimeout(resolve, 11_000));
    console.log('terminated');`,
  );
  const result = runFile(main);
  t.deepEqual({ status: result.status, stdout: result.stdout }, { status: 0, stdout: 'terminated\n' }, result.stderr);
});

test.serial('sessions and outputs that are dropped are collected without harm', (t) => {
  const result = runScript(`for (let i = 0; i < 30; i += 1) {
      const session = await create(modelPath);
      await Promise.all([1, 2, 3].map(() => session.run({ x: new ort.Tensor('float32', new Float32Array(128 * 50), [50, 128]) })));
      if (i % 10 === 9 && globalThis.gc) gc();
    }
    console.log(process.memoryUsage().rss < 600e6);`);
  t.deepEqual({ status: result.status, stdout: result.stdout }, { status: 0, stdout: 'true\n' }, result.stderr);
});
