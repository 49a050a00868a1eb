// How a model folder is opened: in which session, from which files.
import { spawnSync } from 'node:child_process';
import { cp, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test from 'ava';
import { rewriteFolder } from '../../graph-passes/index.js';
import { ModelFolderError } from '../../models/errors.js';
import { argmax } from '../../models/generation/sampling.js';
import { parseGeneratorConfig } from '../../models/model-folder.js';
import { numberTokenizer } from '../../models/number-tokenizer.js';
import { shippedSparseModel } from '../../models/shipped.js';
import { openTextModel } from '../../models/text-model.js';
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
  // Where there is a GPU, a warning says that a float32 model does not use it.
  const env = { ...process.env, CUDA_VISIBLE_DEVICES: '', ...environment };
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8', env });
  if (status !== 0) throw new Error(stderr);
  return { stdout, stderr };
}

test.serial(
  'a model runs in our provider where it is named or nothing is said, also without an import of the package',
  (t) => {
    const { stdout, stderr } = program(`
    for (const options of [undefined, { intraOpNumThreads: 1 }, { executionProviders: ['flashllm', 'cpu'] }, { executionProviders: ['cpu'] }]) {
      const model = await open(options);
      console.log(isOurs(model));
      await model.session.release();
    }`);
    t.deepEqual(stdout.trim().split('\n'), ['true', 'true', 'true', 'false']);
    t.is(stderr, '');
  },
);

test.serial(
  'binaries that do not load are an error where our provider is asked for, not a session without it',
  async (t) => {
    const folder = await temporaryFolder();
    for (const name of Object.values(binaries)) await writeFile(join(folder, name), 'no library');
    const script = `
    for (const executionProviders of [undefined, ['cpu']])
      console.log(await open(executionProviders && { executionProviders }).then(() => 'opened', ({ name, code }) => name + ' ' + code));`;
    const { stdout, stderr } = program(script, { FLASHLLM_NATIVE_DIR: folder });
    t.deepEqual(stdout.trim().split('\n'), ['NativeLoadError ERR_FLASHLLM_LOAD', 'opened']);
    t.is(stderr, '');
  },
);

/** The shipped sparse model with its files elsewhere, and a config.json of another architecture's fields. */
async function relocated(model: string, configJson?: object): Promise<string> {
  const folder = await temporaryFolder();
  for (const name of ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
    await cp(join(shippedSparseModel(), name), join(folder, name));
  await mkdir(join(folder, 'onnx'));
  await cp(join(shippedSparseModel(), 'model.onnx'), join(folder, model));
  // Beside the model under the name that the model knows it by.
  await cp(join(shippedSparseModel(), 'model.onnx_data'), join(folder, model, '..', 'model.onnx_data'));
  if (configJson) await writeFile(join(folder, 'config.json'), JSON.stringify(configJson));
  return folder;
}

async function generates(folder: string | URL): Promise<string | undefined> {
  const { generator, session } = await openTextModel(folder, { intraOpNumThreads: 1 });
  const [text] = await generator.generate(['The state of our Union is'], { maxNewTokens: 8 });
  await session.release();
  return text?.text;
}

test.serial(
  "a model of the hub's layout, of another name or of another architecture opens as one that export wrote",
  async (t) => {
    const expected = await generates(shippedSparseModel());
    const llama = { model_type: 'llama', max_position_embeddings: 1024, vocab_size: 8192, eos_token_id: [2, 7] };
    const gpt2 = { model_type: 'gpt2', n_positions: 1024, eos_token_id: null };
    for (const [model, config] of [
      ['onnx/model.onnx', undefined],
      ['foo.onnx', llama],
      ['onnx/model_fp16.onnx', gpt2],
    ] as const) {
      const folder = await relocated(model, config);
      t.is(await generates(folder), expected, model);
      t.is(await generates(join(folder, model)), expected, 'the file itself');
      await rm(folder, { recursive: true });
    }
  },
);

test.serial("another exporter's decoder, rewritten as one file, generates what its session does", async (t) => {
  const input = join(root, 'tests/fixtures/exports/preln-ts17-past-eager.onnx');
  const output = await temporaryFolder();
  const [report] = await rewriteFolder({ input, output, minSparsity: 0.3 });
  t.true(report?.layers.some(({ decision }) => decision === 'sparse'));
  const config = { model_type: 'llama', max_position_embeddings: 32, vocab_size: 512, eos_token_id: [1, 2] };
  await writeFile(join(output, 'config.json'), JSON.stringify(config));
  const model = await openTextModel(output, { intraOpNumThreads: 1 }, {}, numberTokenizer);
  t.false(model.decoder.hasRows());
  const options = { maxNewTokens: 40, stopTokenIds: [] };
  const { tokenIds, finishReason } = await model.generator.generate([2, 17, 30], options);
  t.deepEqual([tokenIds.length, finishReason], [32, 'length']);
  const { logits } = await model.decoder.step({ ids: [tokenIds.slice(0, -1)], mask: [tokenIds.slice(1).map(() => 1)] });
  const greedy = tokenIds.slice(3).map((_, i) => argmax(logits.at(0, i + 2)));
  t.deepEqual(tokenIds.slice(3), greedy);
  await model.release();
});

test.serial('commands take such a folder, too', async (t) => {
  const folder = await relocated('onnx/foo.onnx', { model_type: 'llama', n_positions: 1024, vocab_size: 8192 });
  await writeFile(join(folder, 'text.txt'), 'The state of our Union is strong. '.repeat(20));
  const sizes = ['--prompt-tokens', '4', '--new-tokens', '3', '--repeats', '1', '--batch', '1', '--ops'];
  for (const [args, printed] of [
    [['eval', folder, '--text', join(folder, 'text.txt')], /^perplexity [\d.]+ on /],
    [['bench', folder, ...sizes], /SparseMatMul/],
    [['generate', folder, 'The state of our Union is', '-n', '3'], /^The state of our Union is/],
  ] as const) {
    const command = ['--import', import.meta.resolve('tsx'), 'cli/main.ts', ...args];
    const { stdout, stderr, status } = spawnSync(process.execPath, command, { cwd: root, encoding: 'utf8' });
    t.is(status, 0, stderr);
    t.regex(stdout, printed);
  }
  await rm(folder, { recursive: true });
});

test.serial('a model that is released ends what is being generated, once however often and by whom', async (t) => {
  for (const executionProviders of [['flashllm', 'cpu'], ['cpu']]) {
    const model = await openTextModel(shippedSparseModel(), { executionProviders, intraOpNumThreads: 1 });
    const running = model.generator.generate('Once upon a time', { maxNewTokens: 500, stopTokenIds: [] });
    await Promise.all([t.throwsAsync(running, { message: /has been released/ }), model.release()]);
    await model.session.release();
    await model[Symbol.asyncDispose]();
    await t.throwsAsync(model.generator.generate('Call me'), { message: /has been released; open it again/ });
  }
});

test.serial('a folder or file is named by a path or a URL', async (t) => {
  const url = pathToFileURL(shippedSparseModel());
  const expected = await generates(shippedSparseModel());
  t.is(await generates(url), expected);
  t.is(await generates(url.href), expected);
  t.is(await generates(pathToFileURL(join(shippedSparseModel(), 'model.onnx'))), expected);
  for (const [wrong, found] of [
    [
      new URL('https://huggingface.co/facebook/opt-125m'),
      /folder is https:\/\/huggingface.*, expected a path or the file: URL/,
    ],
    [undefined, /folder is undefined, expected a path or a file: URL/],
  ] as const)
    await t.throwsAsync(openTextModel(wrong as URL), { instanceOf: ModelFolderError, message: found });
});

test.serial(
  'of several models in a folder, model.onnx is opened; else the error names them, and what to give',
  async (t) => {
    const folder = await relocated('onnx/model.onnx');
    await cp(join(folder, 'onnx', 'model.onnx'), join(folder, 'onnx', 'model_q4.onnx'));
    const several = {
      code: 'ERR_FLASHLLM_USAGE',
      message:
        /has 2 models: onnx\/model\.onnx, onnx\/model_q4\.onnx; name one of them instead of the folder, such as .*onnx\/model\.onnx$/,
    };
    await t.throwsAsync(openTextModel(folder), several);
    for (const name of ['model.onnx', 'model.onnx_data']) await rename(join(folder, 'onnx', name), join(folder, name));
    t.is(await generates(folder), await generates(shippedSparseModel()));
    await rm(folder, { recursive: true });
  },
);

test.serial('a folder without a model says what to do', async (t) => {
  const folder = await temporaryFolder();
  const code = 'ERR_FLASHLLM_USAGE';
  await t.throwsAsync(openTextModel(folder), {
    code,
    message: /has no model\.onnx or other \.onnx file, nor has its folder onnx; .*flashllm export /,
  });
  await t.throwsAsync(openTextModel(join(folder, 'none')), {
    code,
    message: /there is no folder .*none; expected one that/,
  });
  await writeFile(join(folder, 'text.txt'), '');
  await t.throwsAsync(openTextModel(join(folder, 'text.txt')), {
    code,
    message: /text\.txt is no folder; expected .*, or an \.onnx file/,
  });
});

test.serial('of config.json generation reads end of text, context and vocabulary, of any architecture', async (t) => {
  t.deepEqual(parseGeneratorConfig({}), { eosTokenId: 2, maxPositions: 2048, vocabSize: 50272 });
  const shipped = JSON.parse(await readFile(join(shippedSparseModel(), 'config.json'), 'utf8'));
  t.deepEqual(parseGeneratorConfig(shipped), { eosTokenId: 2, maxPositions: 1024, vocabSize: 8192 });
  const llama = { model_type: 'llama', max_position_embeddings: 4096, vocab_size: 32000, eos_token_id: [1, 2] };
  t.deepEqual(parseGeneratorConfig(llama), { eosTokenId: [1, 2], maxPositions: 4096, vocabSize: 32000 });
  t.deepEqual(parseGeneratorConfig({ model_type: 'gpt2', n_positions: 1024 }), { eosTokenId: [], maxPositions: 1024 });
  for (const [json, message] of [
    [[], /expected a JSON object, found \[\]/],
    [{ model_type: 'bloom' }, /has neither max_position_embeddings nor n_positions; add the longest sequence/],
    [
      { model_type: 'llama', max_position_embeddings: 'long' },
      /max_position_embeddings is "long", expected a whole number from 1/,
    ],
    [{ vocab_size: 0 }, /vocab_size is 0, expected a whole number from 1/],
    [{ eos_token_id: '</s>' }, /eos_token_id is "<\/s>", expected a token id or a list/],
  ] as const)
    t.throws(() => parseGeneratorConfig(json), { code: 'ERR_FLASHLLM_CONFIG', message });
});
