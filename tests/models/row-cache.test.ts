// Decoders that update a cache in place: rows of different lengths in memory with room, whose other content is poison.
import { rm } from 'node:fs/promises';
import test from 'ava';
import { InferenceSession } from 'onnxruntime-node';
import { type Cache, Decoder } from '../../models/decoder.js';
import { StepIntegers } from '../../models/generation/batch.js';
import { hostMemory } from '../../models/generation/cache-memory.js';
import { RowCache } from '../../models/generation/row-cache.js';
import { parseOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import '../../provider/index.js';
import { randomParameters, temporaryFolder, tinyConfig, writeCheckpoint } from './support/checkpoints.js';
import { referenceLogits } from './support/reference-opt.js';

const NAN_HALF = 0x7e00;

interface Row {
  readonly past: number;
  readonly ids: readonly number[];
}

/** One step over rows `first` and following; its tokens' logits by row and token. */
async function step(decoder: Decoder, cache: Cache, rows: readonly Row[]) {
  const fresh = Math.max(...rows.map(({ ids }) => ids.length));
  const integers = new StepIntegers(rows.length, fresh, Math.max(...rows.map(({ past, ids }) => past + ids.length)));
  for (const [r, { past, ids }] of rows.entries()) {
    integers.keep(r, 0, past + ids.length);
    for (const [i, id] of ids.entries()) integers.set(r, i, id, past + i);
  }
  return (await decoder.run({ ...integers.tensors(), cache, present: cache })).logits;
}

function poison(cache: Cache): void {
  for (const { type, data } of Object.values(cache)) {
    if (type === 'float32') (data as Float32Array).fill(Number.NaN);
    else new Uint16Array((data as Uint16Array).buffer).fill(NAN_HALF);
  }
}

for (const dtype of ['float32', 'float16'] as const)
  for (const providers of [['cpu'], ['flashllm', 'cpu']]) {
    test(`${dtype}, ${providers[0]}: prompts in chunks and in one step, then steps of all rows, equal the reference`, async (t) => {
      const json = tinyConfig();
      const config = parseOptConfig(json);
      const parameters = randomParameters(config, 'float32');
      const folder = await writeCheckpoint(json, parameters, 'float32');
      const output = await temporaryFolder();
      const { modelPath } = await exportOpt(folder, { output, dtype });
      const decoder = new Decoder(await InferenceSession.create(modelPath, { executionProviders: providers }));
      t.true(decoder.shape.inPlace);
      const sequences = [14, 3, 9, 6].map((length, row) =>
        Array.from({ length }, (_, i) => (i * 5 + row * 7 + 2) % config.vocabSize),
      );
      const expected = sequences.map((ids) => referenceLogits(config, parameters, ids));
      const tolerance = dtype === 'float16' ? 8e-3 : 3e-6;
      const equal = (found: Float32Array, row: number, token: number) => {
        const reference = expected[row]?.[token] as Float64Array;
        const scale = Math.max(1, ...reference.map(Math.abs));
        for (const [i, value] of reference.entries())
          if (!(Math.abs(value - (found[i] as number)) <= tolerance * scale))
            return t.fail(`row ${row}, token ${token}: ${found[i]}, expected ${value}`);
        return t.pass();
      };

      const cache = new RowCache(decoder.shape, 4, decoder.memory);
      await cache.reserve(4, 16, []);
      poison(cache.view(0, 4));
      // The first prompt in chunks of 5 and 4, the others in one step, of different lengths, 2 tokens short.
      const long = sequences[0] as number[];
      const prompts = sequences.map((ids, row) => ids.slice(0, row === 0 ? 9 : ids.length - 2));
      await step(decoder, cache.view(0, 1), [{ past: 0, ids: long.slice(0, 5) }]);
      const chunk = await step(decoder, cache.view(0, 1), [{ past: 5, ids: long.slice(5, 9) }]);
      for (let i = 0; i < 4; i++) equal(chunk.at(0, i), 0, 5 + i);
      const rest = await step(
        decoder,
        cache.view(1, 3),
        prompts.slice(1).map((ids) => ({ past: 0, ids })),
      );
      prompts.slice(1).forEach((ids, r) => {
        equal(rest.at(r, ids.length - 1), r + 1, ids.length - 1);
      });
      for (let i = 0; i < 2; i++) {
        const rows = prompts.map(({ length }, row) => ({ past: length + i, ids: [sequences[row]?.[length + i] ?? 0] }));
        const logits = await step(decoder, cache.view(0, 4), rows);
        for (const [row, { past }] of rows.entries()) equal(logits.at(row, 0), row, past);
      }
      // A row among others, without them.
      const alone = await step(decoder, cache.view(0, 1), [{ past: 11, ids: long.slice(11, 12) }]);
      equal(alone.at(0, 0), 0, 11);
      await decoder.session.release();
      await Promise.all([folder, output].map((path) => rm(path, { recursive: true })));
    });
  }

test('reserving more keeps what rows hold; moving copies a row', async (t) => {
  const shape = { layers: 1, heads: 2, headDim: 8, type: 'float32', inPlace: true } as const;
  const cache = new RowCache(shape, 5, hostMemory);
  await cache.reserve(2, 10, []);
  const key = (rows: number) =>
    cache.view(0, rows)['past_key_values.0.key'] as { dims: readonly number[]; data: unknown };
  t.deepEqual(key(2).dims, [2, 2, 64, 8]);
  const head = (row: number, h: number, length: number) => {
    const [, heads, room, width] = key(row + 1).dims as [number, number, number, number];
    const start = (row * heads + h) * room * width;
    return (key(row + 1).data as Float32Array).subarray(start, start + length * width);
  };
  for (const row of [0, 1])
    for (const h of [0, 1])
      head(row, h, 10).forEach((_, i, all) => {
        all[i] = 1000 * row + 100 * h + i;
      });
  const before = [0, 1].flatMap((row) => [0, 1].map((h) => [...head(row, h, 7)]));
  await cache.reserve(3, 100, [7, 7]);
  t.deepEqual(key(4).dims, [4, 2, 128, 8]);
  t.is(cache.bytes, 2 * 4 * 2 * 128 * 8 * 4);
  t.deepEqual(
    [0, 1].flatMap((row) => [0, 1].map((h) => [...head(row, h, 7)])),
    before,
  );
  await cache.move(1, 3, 7);
  t.deepEqual(
    [0, 1].map((h) => [...head(3, h, 7)]),
    before.slice(2),
  );
  await cache.reserve(5, 5, [7, 7, 0, 7]);
  t.deepEqual(key(5).dims, [5, 2, 128, 8]);
  t.deepEqual(
    [0, 1].map((h) => [...head(3, h, 7)]),
    before.slice(2),
  );
  cache.clear();
  t.is(cache.bytes, 0);
});

test('a cache that no process can have is refused with its size', (t) => {
  t.throws(() => hostMemory.allocate('float32', [1, 6, 16_000_064, 2 ** 20]), {
    name: 'ModelFolderError',
    message: /a cache of float32 \[1, 6, 16000064, 1048576\].*ask for fewer tokens/,
  });
});
