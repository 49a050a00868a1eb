// Whole folders: what comes out, interruptions, determinism, settings.
import { spawn } from 'node:child_process';
import { access, copyFile, cp, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { openCheckpoint } from '../../../models/checkpoint/index.js';
import type { FloatType } from '../../../models/checkpoint/types.js';
import { parseOptConfig } from '../../../models/opt/config.js';
import { exportOpt } from '../../../models/opt/export.js';
import { type PruneOptions, parseLayerSparsity, pruneOpt } from '../../../models/pruning/index.js';
import { shippedCalibrationText, shippedModel } from '../../../models/shipped.js';
import { randomParameters, temporaryFolder, tinyConfig, writeCheckpoint } from '../support/checkpoints.js';

/** The first part of the text that ships: the whole takes seconds to tokenize. */
const file = join(await temporaryFolder(), 'calibration.txt');
await writeFile(file, (await readFile(shippedCalibrationText(), 'utf8')).slice(0, 20_000));
const calibration = { file, sequences: 4, length: 24 };

/** A tiny model with the shipped model's tokenizer. */
async function tinyModel(fields: Record<string, unknown> = {}, stored: FloatType = 'float16'): Promise<string> {
  const json = tinyConfig({ vocab_size: 8192, ...fields });
  const folder = await writeCheckpoint(json, randomParameters(parseOptConfig(json), stored), stored);
  await copyFile(join(shippedModel(), 'tokenizer.json'), join(folder, 'tokenizer.json'));
  return folder;
}

async function output(): Promise<string> {
  return join(await temporaryFolder(), 'pruned');
}

function prune(model: string, options: Partial<PruneOptions> & { output: string }) {
  return pruneOpt(model, { sparsity: 0.5, calibration, ...options });
}

/** Elements of each tensor of a folder, as bytes. */
async function tensors(folder: string): Promise<Map<string, Buffer>> {
  const checkpoint = await openCheckpoint(folder);
  const entries = [...checkpoint.tensors.values()].map(async ({ name, path, offset, byteLength }) => {
    return [name, (await readFile(path)).subarray(offset, offset + byteLength)] as const;
  });
  return new Map(await Promise.all(entries));
}

/** Files of weights, and the report without its times. */
async function content(folder: string): Promise<Record<string, unknown>> {
  const names = (await readdir(folder)).filter((name) => name.endsWith('.safetensors')).sort();
  const weights = await Promise.all(
    names.map(async (name) => [name, (await readFile(join(folder, name))).toString('base64')]),
  );
  const report = (await readFile(join(folder, 'pruning.json'), 'utf8')).replaceAll(/"seconds": [\d.e-]+/g, '');
  return { ...Object.fromEntries(weights), report };
}

function zerosOf(bytes: Buffer, stored: FloatType): number {
  const elements: ArrayLike<number> =
    stored === 'float32'
      ? new Uint32Array(Uint8Array.from(bytes).buffer)
      : new Uint16Array(Uint8Array.from(bytes).buffer);
  const sign = stored === 'float32' ? 0x7fffffff : 0x7fff;
  return Array.from(elements).filter((bits) => (bits & sign) === 0).length;
}

const variants: Record<string, { fields: Record<string, unknown>; stored: FloatType }> = {
  'pre-norm, float16': { fields: {}, stored: 'float16' },
  'post-norm with projections (350M), bfloat16': {
    fields: { do_layer_norm_before: false, word_embed_proj_dim: 24 },
    stored: 'bfloat16',
  },
  'no biases, float32': { fields: { enable_bias: false }, stored: 'float32' },
  'untied head, norms without parameters': {
    fields: { tie_word_embeddings: false, layer_norm_elementwise_affine: false },
    stored: 'float16',
  },
};

for (const [name, { fields, stored }] of Object.entries(variants)) {
  test(`${name}: half of each linear is zero, everything else is what it was, and the folder exports`, async (t) => {
    const model = await tinyModel(fields, stored);
    const folder = await output();
    const { report } = await prune(model, { output: folder });
    const before = await tensors(model);
    const after = await tensors(folder);
    t.deepEqual([...after.keys()].sort(), [...before.keys()].sort());
    for (const [tensor, bytes] of after) {
      const linear = /layers\.\d+\.(self_attn\.\w+_proj|fc\d)\.(weight|bias)$/.exec(tensor);
      if (linear?.[2] === 'weight')
        t.true(zerosOf(bytes, stored) >= bytes.length / (stored === 'float32' ? 8 : 4), tensor);
      else if (!linear) t.deepEqual(bytes, before.get(tensor), tensor);
    }
    t.is(report.layers.length, 2);
    t.true(report.total.sparsity >= 0.5 && report.total.sparsity < 0.51);
    t.true(report.layers.every((layer) => layer.linears.every(({ relativeError: e }) => e > 0 && e < 1)));
    t.deepEqual(JSON.parse(await readFile(join(folder, 'pruning.json'), 'utf8')), report);
    t.regex(await readFile(join(folder, 'pruning.svg'), 'utf8'), /^<svg [\s\S]*<\/svg>\n$/);
    t.deepEqual(await readdir(join(folder, '..')), ['pruned']);
    const exported = await exportOpt(folder, { output: await temporaryFolder() });
    t.deepEqual(exported.unusedTensors, []);
  });
}

test('without bias correction, compensation moves weights alone: biases are what they were', async (t) => {
  const model = await tinyModel({ num_hidden_layers: 3 });
  const [folder, alone] = [await output(), await output()];
  await prune(model, { output: folder, biasCorrection: false });
  await prune(model, { output: alone, biasCorrection: false, compensation: false });
  const [before, after, without] = [await tensors(model), await tensors(folder), await tensors(alone)];
  const biases = [...after.keys()].filter((name) => /(_proj|fc\d)\.bias$/.test(name));
  t.is(biases.length, 3 * 6);
  for (const name of biases) t.deepEqual(after.get(name), before.get(name), name);
  const last = [...after.keys()].find((name) => name.endsWith('layers.2.fc2.weight')) as string;
  t.notDeepEqual(after.get(last), without.get(last));
});

test('results do not depend on threads, and repeat', async (t) => {
  const model = await tinyModel({ hidden_size: 96, ffn_dim: 200, num_hidden_layers: 2 });
  for (const method of ['sparsegpt', 'admm'] as const) {
    const contents = await Promise.all(
      [1, 2, 3, 3].map(async (threads) => {
        const folder = await output();
        await prune(model, { output: folder, threads, method });
        return content(folder);
      }),
    );
    for (const other of contents.slice(1)) t.deepEqual(other, contents[0]);
  }
});

test('another seed takes other text', async (t) => {
  const model = await tinyModel();
  const [a, b] = await Promise.all(
    [0, 1].map(async (seed) => {
      const folder = await output();
      await prune(model, { output: folder, calibration: { ...calibration, seed } });
      return content(folder);
    }),
  );
  t.notDeepEqual(a, b);
});

test('sparsities by pattern: the last match counts, and one without a match is a mistake', async (t) => {
  const model = await tinyModel();
  const folder = await output();
  const layerSparsity = parseLayerSparsity({ '*.fc2': 0.75, 'layers.1.*': 0, 'layers.1.fc1': 0.25 }, 'a file');
  const { report } = await prune(model, { output: folder, layerSparsity });
  const found = report.layers.map((layer) =>
    Object.fromEntries(
      layer.linears.map((linear) => [linear.name, 1 - linear.nnz / (linear.outFeatures * linear.inFeatures)]),
    ),
  );
  t.is(found[0]?.fc2, 0.75);
  t.is(found[0]?.fc1, 0.5);
  t.is(found[1]?.fc1, 0.25);
  t.true((found[1]?.fc2 as number) < 0.01);
  await t.throwsAsync(
    prune(model, { output: await output(), layerSparsity: [{ pattern: 'layer.1.*', sparsity: 0 }] }),
    {
      message:
        /no linear matches the pattern "layer\.1\.\*"; they are named layers\.0\.self_attn\.q_proj to layers\.1\.fc2/,
    },
  );
});

test('an aborted run keeps its layers, and the next one ends as if nothing had happened', async (t) => {
  const model = await tinyModel({ num_hidden_layers: 4 });
  const [whole, broken] = [await output(), await output()];
  await prune(model, { output: whole });
  const controller = new AbortController();
  const onProgress = (_: number, note: string) => {
    if (note.startsWith('layer 2')) controller.abort(new Error('enough'));
  };
  await t.throwsAsync(prune(model, { output: broken, signal: controller.signal, onProgress }), { message: 'enough' });
  await t.throwsAsync(access(broken));
  await t.throwsAsync(prune(model, { output: broken, sparsity: 0.6 }), {
    message: /unfinished pruning with other settings.*--restart/,
  });
  const { resumedLayers } = await prune(model, { output: broken });
  t.is(resumedLayers, 2);
  t.deepEqual(await content(broken), await content(whole));
  t.deepEqual(await readdir(join(broken, '..')), ['pruned']);
});

// Serial: it watches the other process, which others' work on this thread would keep it from.
test.serial('a killed process loses at most one layer', async (t) => {
  const layers = 24;
  const model = await tinyModel({ hidden_size: 128, ffn_dim: 512, num_hidden_layers: layers });
  const [whole, broken] = [await output(), await output()];
  const settings = { file, sequences: 48, length: 40 };
  const child = spawn(
    process.execPath,
    [
      '--import=tsx',
      fileURLToPath(new URL('../../../cli/main.ts', import.meta.url)),
      ...[
        'prune',
        model,
        '-o',
        broken,
        '--sparsity',
        '0.5',
        '--sequences',
        '48',
        '--length',
        '40',
        '--calibration',
        file,
      ],
    ],
    { stdio: 'ignore' },
  );
  const ended = new Promise((resolve) => child.on('exit', resolve));
  const progress = join(`${broken}.partial`, 'progress.json');
  const done = async (): Promise<number> => {
    const text = await readFile(progress, 'utf8').catch(() => '');
    return text === '' ? 0 : JSON.parse(text).layers.length;
  };
  while (child.exitCode === null && (await done()) < 2) await sleep(2);
  child.kill('SIGKILL');
  await ended;
  t.is(child.signalCode, 'SIGKILL');
  const kept = await done();
  t.true(kept >= 2 && kept < layers, `${kept} layers`);
  await prune(model, { output: whole, calibration: settings });
  const { resumedLayers } = await prune(model, { output: broken, calibration: settings });
  t.is(resumedLayers, kept);
  t.deepEqual(await content(broken), await content(whole));
});

test('devices: a GPU that is not there is refused by name, and auto does without', async (t) => {
  const model = await tinyModel();
  await t.throwsAsync(prune(model, { output: await output(), device: 'cuda:998' }), {
    message: /cannot prune on cuda:998: (no NVIDIA GPU was found|there is no GPU 998|this build has no CUDA)/,
  });
  await t.throwsAsync(prune(model, { output: await output(), device: 'gpu' as 'cuda' }), {
    message: /device is "gpu", expected auto, cpu, cuda or cuda:<number>/,
  });
  const { report } = await prune(model, { output: await output(), device: 'auto' });
  t.regex(report.device, /^cpu, |NVIDIA/);
  await rm(model, { recursive: true });
});

test('a run that ends before its first layer is taken for what it is, with whatever settings the next one comes', async (t) => {
  const model = await tinyModel();
  const folder = await output();
  const signal = AbortSignal.abort(new Error('enough'));
  await t.throwsAsync(prune(model, { output: folder, signal }), { message: 'enough' });
  t.deepEqual(JSON.parse(await readFile(join(`${folder}.partial`, 'progress.json'), 'utf8')).layers, []);
  t.is((await prune(model, { output: folder, sparsity: 0.25 })).resumedLayers, 0);
  t.deepEqual(await readdir(join(folder, '..')), ['pruned']);
});

test('folders that are not of the pruning stay as they are', async (t) => {
  const model = await tinyModel();
  const folder = await output();
  const note = join(`${folder}.partial`, 'note.txt');
  await mkdir(`${folder}.partial`);
  await writeFile(note, 'keep me');
  await t.throwsAsync(prune(model, { output: folder }), { message: /partial, .*no unfinished pruning.*--restart/ });
  t.is(await readFile(note, 'utf8'), 'keep me');
  await writeFile(join(`${folder}.partial`, 'progress.json'), '{"layers": ');
  await t.throwsAsync(prune(model, { output: folder }), { message: /not what a pruning leaves: .*--restart/ });
  t.is(await readFile(note, 'utf8'), 'keep me');

  const input = join(`${folder}.partial`, 'model');
  await cp(model, input, { recursive: true });
  await t.throwsAsync(prune(input, { output: folder, restart: true }), { message: /partial, .* holds the input/ });
  t.deepEqual((await readdir(input)).sort(), (await readdir(model)).sort());

  const workFolder = `${folder}.partial-activations`;
  await mkdir(workFolder);
  await writeFile(join(workFolder, 'note.txt'), 'keep me');
  for (const work of [workFolder, join(workFolder, 'flashllm-prune-1', '..'), `${workFolder}/flashllm-prune-1/../`]) {
    await writeFile(join(`${folder}.partial`, 'progress.json'), JSON.stringify({ fingerprint: '', layers: [], work }));
    await t.throwsAsync(prune(model, { output: folder }), { message: /not what a pruning leaves: .*--restart/ });
  }
  await prune(model, { output: folder, restart: true, workFolder });
  t.deepEqual(await readdir(workFolder), ['note.txt']);
  t.deepEqual((await readdir(join(folder, '..'))).sort(), ['pruned', 'pruned.partial-activations']);
});

test('runs that share a work folder do not meet there, and one that goes on finds what it has there', async (t) => {
  const model = await tinyModel();
  const workFolder = await temporaryFolder();
  const alone = { output: await output(), sparsity: 0.25 };
  await prune(model, alone);
  const abort = new AbortController();
  let met: Promise<unknown> | undefined;
  const first = { output: await output(), workFolder };
  const second = { output: await output(), workFolder, sparsity: 0.25 };
  const interrupted = prune(model, {
    ...first,
    signal: abort.signal,
    onProgress: (_, note) => {
      if (!note.startsWith('layer 1')) return;
      met ??= prune(model, second);
      abort.abort(new Error('enough'));
    },
  });
  await t.throwsAsync(interrupted, { message: 'enough' });
  await met;
  t.deepEqual(await content(second.output), await content(alone.output));
  const [kept = '', ...others] = await readdir(workFolder);
  t.deepEqual(others, []);
  // Not told where, it knows.
  const moved = join(workFolder, 'moved');
  await rename(join(workFolder, kept), moved);
  await t.throwsAsync(prune(model, { output: first.output }), {
    name: 'ModelFolderError',
    message: /partial has its activations in .*, which is gone: bring it back, or begin anew, as prune --restart does/,
  });
  await rename(moved, join(workFolder, kept));
  t.is((await prune(model, { output: first.output })).resumedLayers, 1);
  t.deepEqual(await readdir(workFolder), []);
  const straight = await output();
  await prune(model, { output: straight });
  t.deepEqual(await content(first.output), await content(straight));
});

test('a second run with the same output is refused, and the first ends as if alone', async (t) => {
  const model = await tinyModel();
  const [folder, alone] = [await output(), await output()];
  await prune(model, { output: alone });
  const second = { output: folder, sparsity: 0.25 };
  let met: Promise<unknown> | undefined;
  const onProgress = (_: number, note: string) => {
    if (!note.startsWith('layer 1')) return;
    met ??= Promise.allSettled([prune(model, second), prune(model, { ...second, restart: true })]);
  };
  await prune(model, { output: folder, onProgress });
  for (const { reason } of (await met) as PromiseRejectedResult[]) {
    t.is(reason?.name, 'OutputError');
    t.regex(reason.message, /pruned is being written by another .*process \d+ on .*delete .*\.pruned\.lock/);
  }
  t.deepEqual(await content(folder), await content(alone));
  t.deepEqual(await readdir(join(folder, '..')), ['pruned']);
});

test('beginning anew takes the activations of the run before along', async (t) => {
  const model = await tinyModel();
  const workFolder = await temporaryFolder();
  const folder = await output();
  const signal = AbortSignal.abort(new Error('enough'));
  await t.throwsAsync(prune(model, { output: folder, workFolder, signal }), { message: 'enough' });
  t.is((await readdir(workFolder)).length, 1);
  await prune(model, { output: folder, restart: true });
  t.deepEqual(await readdir(workFolder), []);
});

test('an output that exists, a text that is too short and settings out of range are refused', async (t) => {
  const model = await tinyModel();
  const folder = await output();
  await prune(model, { output: folder });
  await t.throwsAsync(prune(model, { output: folder }), { message: /exists and is not empty/ });
  const text = join(await temporaryFolder(), 'text');
  await writeFile(text, 'too short');
  await t.throwsAsync(prune(model, { output: await output(), calibration: { ...calibration, file: text } }), {
    message: /has \d+ tokens, one sequence takes 24/,
  });
  await t.throwsAsync(prune(model, { output: await output(), calibration: { file, length: 41 } }), {
    message: /length is 41, expected 1 to the model's 40 positions/,
  });
  await t.throwsAsync(prune(model, { output: await output(), calibration: { file, length: 40, sequences: 1e12 } }), {
    message: /1000000000000 sequences of 40 tokens are asked for, expected at most 268435456 tokens together/,
  });
  for (const [options, message] of [
    [{ calibration: 'text' }, /calibration is "text", expected an object: \{ file \} names a text file/],
    [{ sparsty: 0.5 } as never, /unknown option 'sparsty' of pruneOpt, which may be meant for sparsity/],
    [{ calibration: { path: file } }, /unknown option 'path' of calibration; expected one of: file, sequences/],
    [{ calibration: { file: 5 } }, /file of calibration is 5, expected the path of a text file/],
    [{ calibration: { seed: 'a' } }, /seed of calibration is "a", expected a whole number/],
    [{ method: 'random' }, /method is "random", expected one of magnitude, wanda/],
    [{ scope: 'column' }, /scope is "column", expected one of layer, row/],
    [{ compensation: 'no' }, /compensation is "no", expected true or false/],
    [{ signal: {} }, /signal is \{\}, expected an AbortSignal/],
    [{ output: undefined }, /output is undefined, expected the path of the folder/],
  ] as const)
    await t.throwsAsync(prune(model, { output: await output(), ...(options as object) }), {
      code: 'ERR_FLASHLLM_USAGE',
      message,
    });
  await t.throwsAsync(prune(model, { output: await output(), sparsity: 1 }), {
    message: /sparsity is 1, expected a number from 0 to below 1/,
  });
  await rm(model, { recursive: true });
});

test('a pruning that cannot begin leaves nothing and says what to change', async (t) => {
  const model = await tinyModel();
  const folder = await output();
  const note = join(folder, '..', 'note.txt');
  await writeFile(note, 'keep me');
  for (const [options, message] of [
    [{ output: folder, device: 'cuda:999' }, /cannot prune on cuda:999: /],
    [{ output: folder, workFolder: note }, /cannot use the work folder .*note\.txt: .*; choose another/],
    [{ output: note }, /cannot write to .*note\.txt: .*; choose another output folder/],
  ] as const)
    await t.throwsAsync(prune(model, options), { name: 'ModelFolderError', message });
  t.deepEqual(await readdir(join(folder, '..')), ['note.txt']);
});
