// The trained model that ships: exported, its tokenizer, generation and perplexity, against what PyTorch and
// transformers gave.
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { ModelFolderError } from '../../models/errors.js';
import { exportOpt, exportRandomOpt } from '../../models/opt/export.js';
import { measurePerplexity } from '../../models/perplexity.js';
import { shippedHeldOutText, shippedModel } from '../../models/shipped.js';
import { TextGenerator } from '../../models/text-generator.js';
import { openTextModel, type TextModel } from '../../models/text-model.js';
import { loadTokenizer } from '../../models/tokenizer.js';
import { temporaryFolder, tinyConfig } from './support/checkpoints.js';

interface Case {
  prompt: string;
  input_ids: number[];
  last_logits_top: [number, number][];
  greedy_ids: number[];
  greedy_text: string;
}

const { cases } = JSON.parse(await readFile(join(shippedModel(), 'reference.json'), 'utf8')) as { cases: Case[] };
const folders: Record<string, string> = {};
const models: Record<string, TextModel> = {};

test.before(async () => {
  for (const dtype of ['float32', 'float16'] as const) {
    folders[dtype] = await temporaryFolder();
    await exportOpt(shippedModel(), { output: folders[dtype], dtype });
    models[dtype] = await openTextModel(folders[dtype], { executionProviders: ['cpu'] });
  }
});

test.after.always(() => Promise.all(Object.values(folders).map((folder) => rm(folder, { recursive: true }))));

const model = (dtype = 'float32') => models[dtype] as TextModel;

for (const { prompt, ...expected } of cases) {
  const title = JSON.stringify(prompt);

  test(`${title}: tokens, logits and greedy text equal the reference`, async (t) => {
    const { tokenizer, decoder, generator } = model();
    const ids = tokenizer.encode(prompt);
    t.deepEqual(ids, expected.input_ids);
    const { logits } = await decoder.step({ ids: [ids], mask: [ids.map(() => 1)] });
    const last = logits.at(0, ids.length - 1);
    for (const [id, value] of expected.last_logits_top) t.true(Math.abs((last[id] as number) - value) < 5e-5);
    const maxNewTokens = expected.greedy_ids.length - ids.length;
    const [result] = await generator.generate([prompt], { maxNewTokens });
    t.deepEqual(result?.tokenIds, expected.greedy_ids);
    t.is(prompt + result?.text, expected.greedy_text);
  });

  test(`${title}: float16 gives the reference's logits to float16's precision`, async (t) => {
    const ids = expected.input_ids;
    const { logits } = await model('float16').decoder.step({ ids: [ids], mask: [ids.map(() => 1)] });
    const last = logits.at(0, ids.length - 1);
    for (const [id, value] of expected.last_logits_top) t.true(Math.abs((last[id] as number) - value) < 0.03);
  });
}

test('a batch of all prompts gives what each gives alone', async (t) => {
  const results = await model().generator.generate(
    cases.map(({ prompt }) => prompt),
    { maxNewTokens: 48 },
  );
  results.forEach((result, i) => {
    const all = cases[i]?.greedy_ids as number[];
    t.deepEqual(result.tokenIds.slice(0, all.length), all);
  });
});

test('a stream yields the text in pieces, ends at stop tokens and at the limit', async (t) => {
  const { generator, tokenizer } = model();
  const whole = cases[0] as Case;
  const stream = generator.stream(whole.prompt, { maxNewTokens: 20 });
  let text = '';
  let next = await stream.next();
  for (; !next.done; next = await stream.next()) text += next.value.text;
  t.is(text, tokenizer.decode(whole.greedy_ids.slice(whole.input_ids.length, whole.input_ids.length + 20)));
  t.is(next.value.finishReason, 'length');
  const stop = whole.greedy_ids[whole.input_ids.length + 3] as number;
  const [stopped] = await generator.generate([whole.prompt], { stopTokenIds: [stop] });
  t.is(stopped?.finishReason, 'stop');
  t.is(stopped?.tokenIds.at(-1), stop);
  t.deepEqual(await generator.generate([]), []);
  t.is((await generator.generate([whole.prompt], { maxNewTokens: 0 }))[0]?.text, '');
});

test('one prompt gives one text, a list of them a list, as text or as tokens', async (t) => {
  const { generator, tokenizer } = model();
  const options = { maxNewTokens: 4 };
  const [listed, ...others] = await generator.generate(['Call me'], options);
  t.deepEqual(others, []);
  t.deepEqual(await generator.generate('Call me', options), listed);
  t.deepEqual(await generator.generate(tokenizer.encode('Call me'), options), listed);
  for (const [given, message] of [
    [[undefined], /prompt 0 of 1 is undefined, expected a text or a list of token ids/],
    [['Call me', 5], /prompt 1 of 2 is 5/],
    [[[2, undefined]], /a prompt has token undefined, expected whole numbers/],
    [undefined, /prompts is undefined, expected a list/],
    [{ prompt: 'Call me' }, /prompts is \{"prompt":"Call me"\}/],
  ] as const)
    await t.throwsAsync(generator.generate(given as unknown as string[], options), {
      code: 'ERR_FLASHLLM_USAGE',
      message,
    });
  t.throws(() => new TextGenerator(model().decoder, tokenizer, model().config, { max_batch: 2 } as object), {
    message: /unknown option 'max_batch' of the scheduler, which may be meant for maxBatch/,
  });
});

test('exports and perplexities refuse options that they do not have', async (t) => {
  const output = join(await temporaryFolder(), 'out');
  const usage = { instanceOf: ModelFolderError, code: 'ERR_FLASHLLM_USAGE' };
  for (const [options, message] of [
    [{ output, dtype: 'fp16' }, /dtype is "fp16", expected one of float32, float16/],
    [{ output, attention: 'gqa' }, /attention is "gqa", expected one of group-query, onnx/],
    [{ output, type: 'float16' }, /unknown option 'type' of export, which may be meant for dtype/],
    [{}, /output is undefined, expected the path of the folder to write/],
    [undefined, /given as options of export is undefined, expected an object/],
  ] as const) {
    await t.throwsAsync(exportOpt(shippedModel(), options as never), { ...usage, message });
    const random = { sparsity: 0.5, seed: 0, shareLayers: false };
    await t.throwsAsync(exportRandomOpt(tinyConfig(), random, options as never), { ...usage, message });
  }
  await t.throwsAsync(exportOpt(undefined as never, { output }), { ...usage, message: /folder is undefined/ });
  await t.throwsAsync(measurePerplexity(model().decoder, [2, 5], { window: 100_000 }), {
    ...usage,
    message: /window is 100000, expected at most the 1024 tokens that the model takes/,
  });
  await t.throwsAsync(measurePerplexity(model().decoder, [2, 5], { windows: 8 } as object), {
    ...usage,
    message: /unknown option 'windows' of measurePerplexity, which may be meant for window/,
  });
  t.false(existsSync(output));
});

test('generation stops at the model’s longest sequence and refuses a longer prompt', async (t) => {
  const { generator } = model();
  const near = 'a b '.repeat(508);
  const [result] = await generator.generate([near], { maxNewTokens: 50, stopTokenIds: [] });
  t.is(result?.tokenIds.length, 1024);
  await t.throwsAsync(generator.generate(['a b '.repeat(520)]), { message: /tokens, the model takes at most 1024/ });
});

test('an aborted generation throws the reason between two tokens', async (t) => {
  const controller = new AbortController();
  const reason = new Error('enough');
  let pieces = 0;
  await t.throwsAsync(
    async () => {
      for await (const _piece of model().generator.stream('Call me', { signal: controller.signal }))
        if (++pieces === 3) controller.abort(reason);
    },
    { is: reason },
  );
  t.is(pieces, 3);
});

test('characters of several tokens come out whole', async (t) => {
  const { TextAssembler } = await import('../../models/generation/text-assembler.js');
  const { tokenizer } = model();
  const text = 'Zoë saw 鯨 and 🐋!';
  const assembler = new TextAssembler(tokenizer);
  const pieces = tokenizer.encode(text, { special: false }).map((id) => assembler.push(id));
  t.is(pieces.join(''), text);
  t.false(pieces.some((piece) => piece.includes('\ufffd')));
});

test('what a token adds is known of whole characters alone, and is what decoding gives', async (t) => {
  const { TextAssembler } = await import('../../models/generation/text-assembler.js');
  const { tokenizer, decoder } = model();
  const { textOf } = tokenizer;
  if (!textOf) return t.fail('a byte-level tokenizer knows it');
  const ids = Array.from({ length: decoder.vocabulary as number }, (_, id) => id);
  const unknown = ids.filter((id) => textOf(id) === undefined);
  // Bytes that alone are no character are 0x80 to 0xff; merged ones there are few.
  t.true(unknown.length >= 128 && unknown.length < ids.length / 10, `${unknown.length}`);
  t.true(unknown.every((id) => tokenizer.decode([id]).includes('\ufffd')));
  for (const step of [1, 2311, 4447]) {
    const mixed = ids.map((i) => (i * step) % ids.length);
    const assembler = new TextAssembler(tokenizer);
    t.is([...mixed.map((id) => assembler.push(id)), assembler.flush()].join(''), tokenizer.decode(mixed));
  }
});

test('a text’s bytes are its tokens’, also where these are no characters alone', (t) => {
  const { tokenizer, decoder } = model();
  const bytesOf = (id: number) => [...(tokenizer.bytesOf?.(id) ?? [])];
  const text = ' ~ \t\n\u0000 é 😀 日本 \u00ad\u00a0ÿ’';
  t.deepEqual(tokenizer.encode(text, { special: false }).flatMap(bytesOf), [...Buffer.from(text)]);
  for (let id = 0; id < (decoder.vocabulary as number); id++) {
    const text = tokenizer.textOf?.(id);
    if (text) t.is(Buffer.from(bytesOf(id)).toString(), text);
  }
  t.is(tokenizer.bytesOf?.(10 ** 6), undefined);
});

test('no text has more bytes than its tokens may have', (t) => {
  const { mostBytes = 0, ...tokenizer } = model().tokenizer;
  const longest = ` +${'-'.repeat(57)}+${'-'.repeat(32)}`;
  t.is(tokenizer.encode(longest, { special: false }).length, 1);
  t.is(mostBytes, Buffer.byteLength(longest));
});

test('perplexity of the held-out text, and by hand on a few tokens', async (t) => {
  const { tokenizer, decoder } = model();
  const ids = tokenizer.encode(await readFile(shippedHeldOutText(), 'utf8')).slice(0, 4096);
  const heldOut = await measurePerplexity(decoder, ids, { window: 1024 });
  t.is(heldOut.tokens, 4096 - 4);
  t.true(heldOut.perplexity > 60 && heldOut.perplexity < 140, `${heldOut.perplexity}`);
  // The same by hand on a few tokens: exp of the mean of −log softmax.
  const few = ids.slice(0, 6);
  const { logits } = await decoder.step({ ids: [few], mask: [few.map(() => 1)] });
  const losses = few.slice(1).map((id, i) => {
    const row = [...logits.at(0, i)];
    return Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) - (row[id] as number);
  });
  const byHand = Math.exp(losses.reduce((a, b) => a + b, 0) / losses.length);
  t.true(Math.abs((await measurePerplexity(decoder, few)).perplexity / byHand - 1) < 1e-6);
  await t.throwsAsync(measurePerplexity(decoder, [2]), { message: /at least 2/ });
});

test('a tokenizer made of vocab.json and merges.txt is the same as the shipped one', async (t) => {
  const folder = await temporaryFolder();
  for (const file of ['vocab.json', 'merges.txt'])
    await writeFile(join(folder, file), await readFile(join(shippedModel(), file)));
  const made = await loadTokenizer(folder);
  const text = (await readFile(shippedHeldOutText(), 'utf8')).slice(0, 20000);
  const shipped = model().tokenizer;
  for (const sample of ['', ' leading', 'Ünïcode 🐋\n\n\ttabs', '</s>', text])
    t.deepEqual(made.encode(sample), shipped.encode(sample));
  t.is(made.decode(made.encode(text)), text);
});

test('a tokenizer.json that cannot be used is told when it is loaded', async (t) => {
  const shipped = JSON.parse(await readFile(join(shippedModel(), 'tokenizer.json'), 'utf8'));
  const damaged: Record<string, object> = {
    'added tokens that are no list': { ...shipped, added_tokens: '' },
    'an added token without a text': { ...shipped, added_tokens: [{ ...shipped.added_tokens[0], content: [] }] },
    'a post processor without a template': { ...shipped, post_processor: { type: 'TemplateProcessing' } },
    'no vocabulary': { ...shipped, model: { ...shipped.model, vocab: undefined } },
  };
  for (const [what, json] of Object.entries(damaged)) {
    const folder = await temporaryFolder();
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(json));
    await t.throwsAsync(
      loadTokenizer(folder),
      { name: 'ModelFolderError', message: /the tokenizer in .* cannot be used/ },
      what,
    );
  }
});

test('an export carries the folder’s other files along, and nothing unfinished', async (t) => {
  const files = (await readdir(folders.float32 as string)).sort();
  const expected = [
    'config.json',
    'generation_config.json',
    'merges.txt',
    'model.onnx',
    'model.onnx_data',
    'tokenizer.json',
    'tokenizer_config.json',
    'vocab.json',
  ];
  t.deepEqual(files, expected);
  const bare = await temporaryFolder();
  for (const file of await readdir(shippedModel())) {
    if (!file.startsWith('tokenizer')) await writeFile(join(bare, file), await readFile(join(shippedModel(), file)));
  }
  const { companions } = await exportOpt(bare, { output: join(bare, 'out') });
  t.true(companions.includes('tokenizer.json'));
});

test('no tokenizer or generation_config.json of an earlier model stays in an output, other files do', async (t) => {
  const output = await temporaryFolder();
  const stale = async () => {
    for (const file of ['tokenizer.json', 'added_tokens.json', 'notes.txt']) await writeFile(join(output, file), '{}');
  };
  const bare = await temporaryFolder();
  for (const file of await readdir(shippedModel())) {
    if (!file.startsWith('tokenizer')) await writeFile(join(bare, file), await readFile(join(shippedModel(), file)));
  }
  await stale();
  await exportOpt(bare, { output });
  const made = JSON.parse(await readFile(join(output, 'tokenizer.json'), 'utf8'));
  t.is(Object.keys(made.model.vocab).length, 8192);
  t.false((await readdir(output)).includes('added_tokens.json'));
  for (const file of ['vocab.json', 'merges.txt']) await rm(join(bare, file));
  const left = ['config.json', 'generation_config.json', 'model.onnx', 'model.onnx_data', 'notes.txt'];
  await stale();
  await exportOpt(bare, { output });
  t.deepEqual((await readdir(output)).sort(), left);
  await stale();
  await exportRandomOpt(tinyConfig(), { sparsity: 0.5, seed: 0, shareLayers: false }, { output });
  t.deepEqual(
    (await readdir(output)).sort(),
    left.filter((name) => name !== 'generation_config.json'),
  );
});

test('what is wrong with the files beside a model is told before its weights are written', async (t) => {
  const output = await temporaryFolder();
  await mkdir(join(output, 'tokenizer_config.json'));
  await t.throwsAsync(exportOpt(shippedModel(), { output }), {
    name: 'OutputError',
    message: /tokenizer_config\.json is a folder, where a file is to be written/,
  });
  t.deepEqual(await readdir(output), ['tokenizer_config.json']);
  const random = await temporaryFolder();
  await mkdir(join(random, 'config.json'));
  await t.throwsAsync(
    exportRandomOpt(tinyConfig(), { sparsity: 0.5, seed: 0, shareLayers: false }, { output: random }),
    { message: /config\.json is a folder, where a file is to be written/ },
  );
  t.deepEqual(await readdir(random), ['config.json']);

  const folder = await temporaryFolder();
  for (const file of await readdir(shippedModel()))
    if (!file.startsWith('tokenizer')) await copyFile(join(shippedModel(), file), join(folder, file));
  await writeFile(join(folder, 'vocab.json'), '{bad');
  const out = join(await temporaryFolder(), 'out');
  await t.throwsAsync(exportOpt(folder, { output: out }), { message: /vocab\.json/ });
  await rm(join(folder, 'vocab.json'));
  await symlink('/etc/hostname', join(folder, 'tokenizer.json'));
  await t.throwsAsync(exportOpt(folder, { output: out }), { message: /tokenizer\.json leads to .*outside/ });
  await t.throwsAsync(readdir(out), { code: 'ENOENT' });
});

test('an interrupted export leaves no model', async (t) => {
  const output = join(await temporaryFolder(), 'out');
  await mkdir(output);
  const controller = new AbortController();
  const reason = new Error('interrupted');
  const running = exportOpt(shippedModel(), {
    output,
    signal: controller.signal,
    onProgress: (done) => done > 0 && controller.abort(reason),
  });
  await t.throwsAsync(running, { is: reason });
  t.deepEqual(await readdir(output), []);
});
