// Continuous batching on the trained model: whatever joins and leaves, every text is the one that its prompt gives alone.
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { TextStreamer } from '@huggingface/transformers';
import test, { type ExecutionContext } from 'ava';
import type { Tensor } from 'onnxruntime-node';
import { Decoder } from '../../models/decoder.js';
import type { ScheduledSequence } from '../../models/generation/batch.js';
import { type CacheMemory, hostMemory } from '../../models/generation/cache-memory.js';
import { QueueFullError } from '../../models/generation/scheduler.js';
import { readOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { shippedHeldOutText, shippedModel } from '../../models/shipped.js';
import { TextGenerator } from '../../models/text-generator.js';
import { openTextModel, type TextModel } from '../../models/text-model.js';
import '../../provider/index.js';
import { temporaryFolder } from './support/checkpoints.js';

const config = await readOptConfig(shippedModel());
const heldOut = await readFile(shippedHeldOutText(), 'utf8');
const folders: string[] = [];
const models: Record<string, TextModel> = {};
/** By the cache that they need: one that is updated in place (also in float16), one that steps copy. */
const kinds = {
  rows: {},
  halves: { dtype: 'float16' },
  padded: { attention: 'onnx' },
} as const;

test.before(async () => {
  for (const [kind, settings] of Object.entries(kinds)) {
    const folder = await temporaryFolder();
    folders.push(folder);
    await exportOpt(shippedModel(), { output: folder, ...settings });
    models[kind] = await openTextModel(folder, { executionProviders: ['flashllm', 'cpu'], intraOpNumThreads: 1 });
  }
});
test.after.always(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true }))));

type Kind = keyof typeof kinds;

const model = (kind: Kind = 'rows') => models[kind] as TextModel;
const generator = (options = {}, kind: Kind = 'rows') =>
  new TextGenerator(model(kind).decoder, model(kind).tokenizer, config, options);

/** Prompts of many lengths, from one token on. */
function prompts(count: number): string[] {
  return Array.from({ length: count }, (_, i) => heldOut.slice(731 * i, 731 * i + ((37 * i) % 160)));
}

const lengthOf = (i: number) => 3 + ((i * 7) % 23);

for (const kind of ['rows', 'halves', 'padded'] as const) {
  test(`${kind}: requests that join and leave give what each gives alone`, async (t) => {
    for (const scheduling of [{ maxBatch: 5, prefillTokens: 32 }, { maxBatch: 16 }]) {
      const shared = generator(scheduling, kind);
      let most = 0;
      const texts = await Promise.all(
        prompts(14).map(async (prompt, i) => {
          // The last ones alone are greedy: of float16, steps are started ahead then.
          const options = {
            maxNewTokens: lengthOf(i),
            temperature: i % 3 || i > 6 ? 0 : 0.8,
            seed: i,
            stopTokenIds: [],
          };
          // They come one after the other, each when the batch is at some other step.
          await new Promise((resolve) => setTimeout(resolve, 9 * i));
          let text = '';
          for await (const piece of shared.stream(prompt, options)) {
            text += piece.text;
            most = Math.max(most, shared.scheduler.active);
          }
          return { prompt, options, text };
        }),
      );
      t.true(most > 2 && most <= scheduling.maxBatch, `${most} at once`);
      for (const { prompt, options, text } of texts)
        t.is((await generator({}, kind).generate([prompt], options))[0]?.text, text);
      await shared.scheduler.idle();
      t.deepEqual([shared.scheduler.active, shared.scheduler.queued, shared.scheduler.cacheBytes], [0, 0, 0]);
    }
  });

  test(`${kind}: cancelling at any time leaves the others’ texts as they are`, async (t) => {
    const shared = generator({ maxBatch: 6, prefillTokens: 16 }, kind);
    const options = { maxNewTokens: 24, stopTokenIds: [] };
    const going = prompts(12).map((prompt, i) => {
      const [generation] = shared.start([prompt], { ...options, maxNewTokens: 10 + i });
      // Some while their prompt is read, some after a few tokens.
      if (i % 3 === 1) setTimeout(() => generation?.cancel(new Error('gone')), 5 * i);
      return { prompt, i, result: generation?.result };
    });
    for (const { prompt, i, result } of going) {
      if (i % 3 === 1) await t.throwsAsync(async () => result, { message: 'gone' });
      else {
        const [alone] = await generator({}, kind).generate([prompt], { ...options, maxNewTokens: 10 + i });
        t.is((await result)?.text, alone?.text);
      }
    }
    await shared.scheduler.idle();
    t.is(shared.scheduler.active, 0);
  });

  test(`${kind}: who cancels at a first token, itself or another, makes place at once`, async (t) => {
    const shared = generator({}, kind);
    const options = { maxNewTokens: 40, stopTokenIds: [] };
    // All are read in one step: the second one's token comes after the first one's and before the last one's.
    const going = shared.start(['The', 'A', 'An', 'One'], options);
    const made = going.map(() => 0);
    for (const [i, generation] of going.entries())
      generation.onPiece(() => {
        made[i] = (made[i] as number) + 1;
        if (i === 1) for (const other of going.slice(0, 3)) other.cancel(new Error('enough'));
      });
    for (const { result } of going.slice(0, 3)) await t.throwsAsync(result, { message: 'enough' });
    t.is((await going[3]?.result)?.tokenIds.length, model(kind).tokenizer.encode('One').length + 40);
    t.deepEqual(made, [1, 1, 0, 40]);
    const abort = new AbortController();
    let put = 0;
    const streamer = { put: () => ++put === 2 && abort.abort(new Error('enough')), end: () => {} };
    const [aborted] = shared.start(['The'], { ...options, signal: abort.signal, streamer });
    await t.throwsAsync(async () => aborted?.result, { message: 'enough' });
    await shared.scheduler.idle();
    // The prompt and its first token.
    t.is(put, 2);
  });
}

test('float16 gives the same alone and in a batch, by its likeliest tokens and by its logits', async (t) => {
  t.true(model('halves').decoder.tellsLikeliest);
  const options = { maxNewTokens: 8, stopTokenIds: [] };
  const batch = await generator({ maxBatch: 4, prefillTokens: 24 }, 'halves').generate(prompts(6), options);
  for (const [i, prompt] of prompts(6).entries()) {
    const [alone] = await generator({}, 'halves').generate([prompt], { ...options, logprobs: 1 });
    t.is(batch[i]?.text, alone?.text);
  }
});

test('logits of a step are not those of a prompt that is read before they are looked at', async (t) => {
  const shared = generator({}, 'halves');
  const drawn = { temperature: 1, seed: 7, maxNewTokens: 8, stopTokenIds: [] };
  const [alone] = await shared.generate(['Once upon a time there was'], drawn);
  // Its steps are started ahead; the first of the second text would be, too.
  const [greedy] = shared.start(['Call me Ishmael'], { maxNewTokens: 30, stopTokenIds: [] });
  let made = 0;
  await new Promise<void>((resolve) => greedy?.onPiece(() => ++made === 5 && resolve()));
  const [second] = shared.start(['Once upon a time there was'], drawn);
  let third: ReturnType<typeof shared.start> = [];
  second?.onPiece(() => {
    if (third.length === 0) third = shared.start(['The'], { ...drawn, seed: 9 });
  });
  t.is((await second?.result)?.text, alone?.text);
  await Promise.all([greedy, ...third].map((generation) => generation?.result));
});

const growing = test.macro<[kind: Kind]>(async (t, kind) => {
  const shared = generator({ maxBatch: 12 }, kind);
  const first = shared.start(prompts(2), { maxNewTokens: 60, stopTokenIds: [] });
  for await (const _ of first[0] as (typeof first)[0]) break;
  const before = shared.scheduler.cacheBytes;
  let most = 0;
  const [kept] = await generator({}, kind).generate([prompts(2)[1] as string], { maxNewTokens: 60, stopTokenIds: [] });
  const later = shared.start(prompts(8), { maxNewTokens: 200, stopTokenIds: [] });
  for (const generation of later)
    generation.onPiece(() => {
      most = Math.max(most, shared.scheduler.cacheBytes);
    });
  t.is((await first[1]?.result)?.text, kept?.text);
  const [alone] = await generator({}, kind).generate([prompts(8)[7] as string], {
    maxNewTokens: 200,
    stopTokenIds: [],
  });
  t.is((await later[7]?.result)?.text, alone?.text);
  t.true(before > 0 && most > 4 * before, `${before} bytes, then ${most}`);
});

test('sessions of the stock backend, which have no prepared runs, give the same', async (t) => {
  const stock = await openTextModel(folders[0] as string, { executionProviders: ['cpu'], intraOpNumThreads: 1 });
  const options = { maxNewTokens: 12, stopTokenIds: [] };
  const texts = await stock.generator.generate(prompts(5), options);
  for (const [i, { text }] of (await generator().generate(prompts(5), options)).entries()) t.is(texts[i]?.text, text);
  await stock.session.release();
});

test('a batch grows while it runs: more rows, and longer ones', growing, 'rows');
test('so does one whose steps are started ahead', growing, 'halves');

test('a prompt read in chunks gives what it gives in one go', async (t) => {
  const prompt = heldOut.slice(500, 1700);
  const [whole] = await generator({ prefillTokens: 4096 }).generate([prompt], { maxNewTokens: 6, logprobs: 0 });
  for (const prefillTokens of [1, 50]) {
    const [chunked] = await generator({ prefillTokens }).generate([prompt], { maxNewTokens: 6, logprobs: 0 });
    t.is(chunked?.text, whole?.text);
    whole?.logprobs?.forEach(({ logprob }, i) => {
      t.true(Math.abs((chunked?.logprobs?.[i]?.logprob as number) - logprob) < 1e-4);
    });
  }
});

test('sequences end on their own: by stop strings over token boundaries, stop tokens, their limit', async (t) => {
  const [free] = await generator().generate(['The state of our Union is'], { maxNewTokens: 24 });
  const text = free?.text as string;
  const stop = text.slice(9, 14);
  const pieces: string[] = [];
  const stream = generator().stream('The state of our Union is', { maxNewTokens: 24, stop: ['never there', stop] });
  let next = await stream.next();
  for (; !next.done; next = await stream.next()) pieces.push(next.value.text);
  t.is(pieces.join(''), text.slice(0, text.indexOf(stop)));
  t.is(next.value.text, pieces.join(''));
  t.is(next.value.finishReason, 'stop');
  // A stop string that comes too early does not count.
  const [long] = await generator().generate(['The state of our Union is'], {
    maxNewTokens: 24,
    minNewTokens: 24,
    stop,
  });
  t.is(long?.finishReason, 'length');
  t.is(long?.text, text);
  const third = free?.tokenIds[(free?.promptTokens ?? 0) + 2] as number;
  const options = { maxNewTokens: 24, stopTokenIds: [third], minNewTokens: 5 };
  const [later] = await generator().generate(['The state of our Union is'], options);
  t.true((later?.tokenIds.length as number) >= 5 + (later?.promptTokens as number));
});

test('log-probabilities come with every token', async (t) => {
  const [text] = await generator().generate(['Call me'], { maxNewTokens: 5, logprobs: 3 });
  t.is(text?.logprobs?.length, 5);
  text?.logprobs?.forEach(({ logprob, top }, i) => {
    t.is(top.length, 3);
    t.is(top[0]?.tokenId, text.tokenIds[text.promptTokens + i]);
    t.is(top[0]?.logprob, logprob);
    t.true(logprob <= 0 && (top[1]?.logprob as number) <= logprob);
  });
});

test('who leaves the loop, aborts or cancels makes place; the others go on', async (t) => {
  const shared = generator({ maxBatch: 2 });
  const [expected] = await generator().generate(['Once upon a time'], { maxNewTokens: 30 });
  const going = shared.generate(['Once upon a time'], { maxNewTokens: 30 });
  let pieces = 0;
  for await (const _ of shared.stream('Call me', { maxNewTokens: 500, stopTokenIds: [] })) if (++pieces === 2) break;
  const controller = new AbortController();
  let warnings = 0;
  const count = () => warnings++;
  process.on('warning', count);
  const many = Array.from({ length: 14 }, (_, i) => `a ${i}`);
  const aborted = shared.generate(many, { maxNewTokens: 500, stopTokenIds: [], signal: controller.signal });
  t.true(shared.scheduler.queued > 0);
  controller.abort(new Error('enough'));
  await t.throwsAsync(aborted, { message: 'enough' });
  t.is(shared.scheduler.queued, 0);
  process.off('warning', count);
  t.is(warnings, 0);
  t.is((await going)[0]?.text, expected?.text);
  await shared.scheduler.idle();
  t.is(shared.scheduler.active, 0);
});

/** Memory that counts: what lives in it, how much has been asked for, and how much of it at once. */
function countedMemory(t: ExecutionContext, records: boolean) {
  const live = new Set<Tensor>();
  const bytes = new Map<Tensor, number>();
  const memory = {
    live,
    /** Longest row that can be had. */
    room: Number.POSITIVE_INFINITY,
    allocations: 0,
    views: 0,
    /** Most bytes at once since it was set to 0. */
    peak: 0,
    records,
    prefillTokens: hostMemory.prefillTokens,
    place: hostMemory.place,
    allocate(...[type, dims]: Parameters<CacheMemory['allocate']>) {
      if ((dims[2] as number) > memory.room) throw new Error('out of memory on the device');
      const tensor = hostMemory.allocate(type, dims);
      (tensor.data as Float32Array).fill(Number.NaN);
      live.add(tensor);
      memory.allocations++;
      bytes.set(tensor, (tensor.data as Float32Array).byteLength);
      memory.peak = Math.max(
        memory.peak,
        [...bytes.values()].reduce((sum, size) => sum + size, 0),
      );
      return tensor;
    },
    rows(...args: Parameters<CacheMemory['rows']>) {
      const view = hostMemory.rows(...args);
      live.add(view);
      memory.views++;
      return view;
    },
    copyRow: hostMemory.copyRow,
    free(tensor: Tensor) {
      t.true(live.delete(tensor));
      bytes.delete(tensor);
    },
  };
  return memory satisfies CacheMemory;
}

const inMemory = test.macro<[records: boolean]>(async (t, records) => {
  const memory = countedMemory(t, records);
  const { live } = memory;
  const { tokenizer, session } = model();
  const shared = new TextGenerator(new Decoder(session, memory), tokenizer, config, { maxBatch: 6, idleCacheBytes: 0 });
  const options = { maxNewTokens: 20, stopTokenIds: [] };
  const texts = await shared.generate(prompts(9), options);
  for (const [i, prompt] of prompts(9).entries())
    t.is(texts[i]?.text, (await generator().generate([prompt], options))[0]?.text);
  await shared.scheduler.idle();
  t.is(live.size, 0);
  // What does not fit ends with the memory's error; what runs goes on.
  memory.room = 128;
  const going = shared.generate(['Call me'], { ...options, maxNewTokens: 60 });
  await t.throwsAsync(shared.generate(['a'], { ...options, maxNewTokens: 300 }), { message: /out of memory/ });
  t.is((await going)[0]?.text, (await generator().generate(['Call me'], { ...options, maxNewTokens: 60 }))[0]?.text);
  await shared.scheduler.idle();
  t.is(live.size, 0);
});

test('a cache lies in the memory that the decoder names, and all of it is given back', inMemory, false);
test('so it does where steps keep their shapes, with more rows than sequences', inMemory, true);

test('prompts come in the chunks that the memory is best with, unless others are asked for', async (t) => {
  const { tokenizer, session } = model();
  const prompt = Array.from({ length: 50 }, (_, i) => 40 + i);
  for (const [scheduling, chunks] of [
    [{}, [16, 16, 16, 2]],
    [{ prefillTokens: 40 }, [40, 10]],
  ] as const) {
    const decoder = new Decoder(session, { ...hostMemory, prefillTokens: 16 });
    const read: number[] = [];
    const run = decoder.run.bind(decoder);
    decoder.run = (input, ...rest) => {
      read.push(input.ids.dims[1] as number);
      return run(input, ...rest);
    };
    await new TextGenerator(decoder, tokenizer, config, scheduling).generate([prompt], { maxNewTokens: 1 });
    t.deepEqual(read, chunks);
  }
});

test('recorded steps and their cache outlast an empty queue, until the scheduler is closed', async (t) => {
  const memory = countedMemory(t, true);
  const { tokenizer, session } = model();
  const shared = new TextGenerator(new Decoder(session, memory), tokenizer, config, {
    maxBatch: 6,
    idleCacheBytes: 2 ** 30,
  });
  const { scheduler } = shared;
  const options = { maxNewTokens: 20, stopTokenIds: [] };
  const texts = await shared.generate(prompts(9), options);
  await scheduler.idle();
  t.is(scheduler.active, 0);
  t.true(scheduler.cacheBytes > 0);
  const single = async (i: number) => {
    t.deepEqual(await shared.generate([prompts(9)[i] as string], options), [texts[i]]);
    await scheduler.idle();
  };
  // A sequence alone may be a step that the batch has not been through.
  await single(0);
  const { allocations, views } = memory;
  for (const i of [1, 2, 0]) await single(i);
  t.is(memory.views, views);
  // The same sequences in the same batch, over a cache that is full of older tokens.
  t.deepEqual(await shared.generate(prompts(9), options), texts);
  t.is(memory.allocations, allocations);
  await Promise.all([scheduler.close(), scheduler.close()]);
  t.is(memory.live.size, 0);
  t.is(scheduler.cacheBytes, 0);
  t.throws(() => shared.start(['a']), { message: /has been released; open it again/ });
});

test('what outlasts the queue is bounded, and makes place for what needs more', async (t) => {
  const memory = countedMemory(t, true);
  const { tokenizer, session, decoder } = model();
  const perToken = 2 * decoder.shape.layers * decoder.shape.heads * decoder.shape.headDim * 4;
  const limit = 2 * 128 * perToken;
  const shared = new TextGenerator(new Decoder(session, memory), tokenizer, config, { idleCacheBytes: limit });
  const { scheduler } = shared;
  const run = async (count: number, maxNewTokens: number) => {
    const ids = Array.from({ length: count }, (_, i) => [2, 40 + i]);
    const texts = await shared.generate(ids, { maxNewTokens, stopTokenIds: [] });
    const [alone] = await generator().generate([[2, 40]], { maxNewTokens, stopTokenIds: [] });
    t.deepEqual(texts[0], alone);
    await scheduler.idle();
    return scheduler.cacheBytes / perToken;
  };
  t.is(await run(1, 100), 128);
  // More rows, none of them shorter than before: both kinds of request find place from now on.
  t.is(await run(2, 10), 2 * 128);
  t.is(await run(1, 100), 2 * 128);
  // Two rows of 192 would be too much to keep, one is not; the old cache is gone before.
  memory.peak = 0;
  t.is(await run(1, 150), 192);
  t.is(memory.peak, 192 * perToken);
  // What is too large is given back.
  t.is(await run(4, 100), 0);
  t.is(memory.live.size, 0);
  // So is what was there before a request that does not fit.
  t.is(await run(1, 100), 128);
  memory.room = 128;
  t.is(await run(2, 10), 2 * 128);
  await t.throwsAsync(shared.generate([[2, 40]], { maxNewTokens: 300 }), { message: /out of memory/ });
  await scheduler.idle();
  t.is(memory.live.size, 0);
  t.throws(() => generator({ idleCacheBytes: -1 }), { message: /idleCacheBytes is -1/ });
});

test('nothing outlasts a queue that a failed step has emptied', async (t) => {
  const memory = countedMemory(t, true);
  const { tokenizer, session } = model();
  const decoder = new Decoder(session, memory);
  let failing = false;
  const watched = Object.create(decoder, {
    run: {
      value: async (input: Parameters<typeof decoder.run>[0]) => {
        if (failing) throw new Error('the model stumbled');
        return decoder.run(input);
      },
    },
  }) as typeof decoder;
  const shared = new TextGenerator(watched, tokenizer, config, { idleCacheBytes: 2 ** 30 });
  await shared.generate(['Call me'], { maxNewTokens: 5 });
  await shared.scheduler.idle();
  t.true(memory.live.size > 0);
  failing = true;
  await t.throwsAsync(shared.generate(['Call me'], { maxNewTokens: 5 }), { message: 'the model stumbled' });
  await shared.scheduler.idle();
  t.is(memory.live.size, 0);
});

for (const kind of ['rows', 'padded'] as const)
  test(`${kind}: releasing a model ends its texts`, async (t) => {
    const folder = folders[Object.keys(kinds).indexOf(kind)] as string;
    const own = await openTextModel(folder, { executionProviders: ['flashllm', 'cpu'] }, { maxBatch: 2 });
    const options = { maxNewTokens: 400, stopTokenIds: [] };
    const texts = own.generator.start(['Once upon a time', 'Call me', 'The state of'], options);
    for await (const _ of texts[0] as (typeof texts)[0]) {
      const released = own.session.release();
      for (const { result } of texts) await t.throwsAsync(result, { message: /has been released; open it again/ });
      await released;
      break;
    }
    const { active, queued, cacheBytes } = own.generator.scheduler;
    t.deepEqual([active, queued, cacheBytes], [0, 0, 0]);
    t.throws(() => own.generator.start(['a']), { message: /has been released; open it again/ });
    await t.throwsAsync(own.decoder.step({ ids: [[2]], mask: [[1]] }), { message: /released/ });
  });

test('too many waiting prompts are refused, all or none', async (t) => {
  const shared = generator({ maxBatch: 1, maxWaiting: 2 });
  const first = shared.start(['a', 'b', 'c'], { maxNewTokens: 2 });
  t.throws(() => shared.start(['d'], { maxNewTokens: 2 }), { instanceOf: QueueFullError, message: /try again/ });
  // To try again would not help.
  const error = t.throws(() => generator({ maxBatch: 1, maxWaiting: 1 }).start(['a', 'b', 'c']), {
    message: '3 texts are asked for at once, expected at most 2: 1 run and 1 wait',
  });
  t.false(error instanceof QueueFullError);
  for (const { result } of first) t.is((await result).tokenIds.length, (await result).promptTokens + 2);
  for (const maxBatch of [0, 1.5, Number.NaN, Number.POSITIVE_INFINITY])
    t.throws(() => generator({ maxBatch }), {
      message: new RegExp(`maxBatch is ${maxBatch}, expected a whole number`),
    });
});

test('an error of the model ends its sequences only, and the generator stays usable', async (t) => {
  const { decoder, tokenizer } = model();
  const failing = Object.create(decoder, {
    run: {
      value: async (input: Parameters<typeof decoder.run>[0]) => {
        if ((input.ids.data as BigInt64Array).includes(77n)) throw new Error('the model stumbled');
        return decoder.run(input);
      },
    },
  }) as typeof decoder;
  const shared = new TextGenerator(failing, tokenizer, config);
  const stream = shared.stream('Once upon a time', { maxNewTokens: 20 });
  let text = (await stream.next()).value.text;
  await t.throwsAsync(shared.generate([[2, 77]], { maxNewTokens: 3 }), { message: 'the model stumbled' });
  for await (const piece of stream) text += piece.text;
  t.is((await generator().generate(['Once upon a time'], { maxNewTokens: 20 }))[0]?.text, text);
  await t.throwsAsync(shared.generate([[2, config.vocabSize]]), { message: /token 8192.*from 0 to 8191/ });
});

test('an error of a step that was started ahead ends those who were in it, not who has joined since', async (t) => {
  const { decoder, tokenizer } = model('halves');
  const { session } = decoder;
  let failing = 0;
  // Other arrays of names: a session without prepared runs, whose every run is seen here.
  const watched = {
    inputNames: [...session.inputNames],
    outputNames: [...session.outputNames],
    inputMetadata: session.inputMetadata,
    outputMetadata: session.outputMetadata,
    run: async (...[feeds, ...rest]: Parameters<typeof session.run>) => {
      if (feeds.input_ids?.dims[1] === 1 && failing-- === 1) throw new Error('the model stumbled');
      return session.run(feeds, ...rest);
    },
  };
  const shared = new TextGenerator(new Decoder(watched as never), tokenizer, config);
  const options = { maxNewTokens: 12, stopTokenIds: [] };
  const [first] = shared.start(['Once upon a time'], options);
  let made = 0;
  let second: ReturnType<typeof shared.start> = [];
  first?.onPiece(() => {
    // The next step is on its way; the one after that will fail.
    if (++made === 4) failing = 1;
    if (made === 5) second = shared.start(['Call me Ishmael'], options);
  });
  await t.throwsAsync(first?.result as Promise<unknown>, { message: 'the model stumbled' });
  t.is(made, 5);
  const expected = await generator({}, 'halves').generate(['Call me Ishmael'], options);
  t.deepEqual(await second[0]?.result, expected[0]);
  const [again] = await shared.generate(['Once upon a time'], options);
  t.is(again?.tokenIds.length, 12 + (again?.promptTokens as number));
});

test('what no step is to blame for ends all, and memory is given back all the same', async (t) => {
  const { decoder, tokenizer } = model();
  const shared = new TextGenerator(decoder, tokenizer, config);
  const options = { maxNewTokens: 40, stopTokenIds: [] };
  const [running, waiting] = shared.start(['Once upon a time', 'Call me'], options);
  let told: unknown;
  const broken: ScheduledSequence = {
    get prompt(): number[] {
      throw new Error('no prompt');
    },
    limit: 4,
    greedy: true,
    next: () => undefined,
    fail(error) {
      told = error;
    },
  };
  running?.onPiece(() => {
    if (!told) shared.scheduler.submit(broken);
  });
  for (const text of [running, waiting])
    await t.throwsAsync(text?.result as Promise<unknown>, { message: 'no prompt' });
  t.is((told as Error).message, 'no prompt');
  await shared.scheduler.idle();
  t.deepEqual([shared.scheduler.active, shared.scheduler.queued, shared.scheduler.cacheBytes], [0, 0, 0]);
  const [expected] = await generator().generate(['Once upon a time'], options);
  t.deepEqual(await shared.generate(['Once upon a time'], options), [expected]);
});

test('the TextStreamer of transformers.js takes our tokens', async (t) => {
  const { AutoTokenizer, env } = await import('@huggingface/transformers');
  env.allowRemoteModels = false;
  env.localModelPath = join(folders[0] as string, '..');
  const tokenizer = await AutoTokenizer.from_pretrained((folders[0] as string).split('/').at(-1) as string);
  let text = '';
  const streamer = new TextStreamer(tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (piece) => {
      text += piece;
    },
  } as ConstructorParameters<typeof TextStreamer>[1]);
  const [result] = await generator().generate(['Call me Ishmael.'], { maxNewTokens: 12, streamer });
  t.is(result?.text, text);
  t.throws(() => generator().start(['a', 'b'], { streamer }), { message: /one prompt/ });
});

test('an error of a streamer ends the text, at its prompt, at a token or at its end', async (t) => {
  const shared = generator();
  for (const [maxNewTokens, failing] of [
    [40, 1],
    [40, 3],
    [3, 5],
    [0, 2],
  ] as const) {
    let calls = 0;
    const count = () => {
      if (++calls === failing) throw new Error(`call ${failing}`);
    };
    const [text] = shared.start(['Call me'], {
      maxNewTokens,
      stopTokenIds: [],
      streamer: { put: count, end: count },
    });
    await t.throwsAsync(text?.result as Promise<unknown>, { message: `call ${failing}` });
    await shared.scheduler.idle();
    t.is(calls, failing);
  }
});

test.serial('the event loop turns while tokens are made', async (t) => {
  const gaps: number[] = [];
  let last = performance.now();
  const timer = setInterval(() => {
    gaps.push(performance.now() - last);
    last = performance.now();
  }, 1);
  await generator().generate(prompts(8), { maxNewTokens: 30, stopTokenIds: [] });
  clearInterval(timer);
  const late = gaps.filter((gap) => gap > 50).length;
  t.true(gaps.length > 20 && late < gaps.length / 20, `${late} of ${gaps.length} turns took over 50 ms`);
});
