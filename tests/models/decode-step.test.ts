// What a decoding step holds goes with it, also where it cannot be made: of mirrors on a device some may not fit any more.
import { rm } from 'node:fs/promises';
import test from 'ava';
import { InferenceSession, type Tensor } from 'onnxruntime-node';
import { Decoder, type RowDecoder } from '../../models/decoder.js';
import { type CacheMemory, hostMemory } from '../../models/generation/cache-memory.js';
import { DecodeStep } from '../../models/generation/decode-step.js';
import { RowCache } from '../../models/generation/row-cache.js';
import { numberTokenizer } from '../../models/number-tokenizer.js';
import { parseOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { TextGenerator } from '../../models/text-generator.js';
import '../../provider/index.js';
import { randomParameters, temporaryFolder, tinyConfig, writeCheckpoint } from './support/checkpoints.js';

let session: InferenceSession;
const config = parseOptConfig(tinyConfig());
test.before(async () => {
  const folder = await writeCheckpoint(tinyConfig(), randomParameters(config, 'float32'), 'float32');
  const output = await temporaryFolder();
  const { modelPath } = await exportOpt(folder, { output, dtype: 'float16' });
  session = await InferenceSession.create(modelPath, { executionProviders: ['flashllm', 'cpu'] });
  await Promise.all([folder, output].map((path) => rm(path, { recursive: true })));
});
test.after.always(() => session.release());

/** Memory that counts what lives in it, and that `room` more tensors, views or mirrors fit in. */
class CountedMemory implements CacheMemory {
  readonly records = true;
  readonly prefillTokens = 256;
  readonly live = new Set<Tensor>();
  room = Number.POSITIVE_INFINITY;

  constructor(private readonly mirrors: boolean) {}

  place = (host: Tensor) => (this.mirrors ? { host, device: this.take(() => host) } : host);
  allocate: CacheMemory['allocate'] = (...args) => this.take(() => hostMemory.allocate(...args));
  rows: CacheMemory['rows'] = (...args) => this.take(() => hostMemory.rows(...args));
  copyRow = hostMemory.copyRow;
  free = (tensor: Tensor) => {
    if (!this.live.delete(tensor)) throw new Error('freed twice, or never there');
  };

  private take(make: () => Tensor): Tensor {
    if (this.room-- <= 0) throw new Error('the memory is full');
    const tensor = make();
    this.live.add(tensor);
    return tensor;
  }
}

function rowDecoder(memory: CacheMemory): RowDecoder {
  const decoder = new Decoder(session, memory);
  if (!decoder.hasRows()) throw new Error('the export has no cache in place');
  return decoder;
}

test('a step that cannot be made leaves nothing, wherever it fails', async (t) => {
  const memory = new CountedMemory(true);
  const decoder = rowDecoder(memory);
  t.true(decoder.tellsLikeliest);
  const cache = new RowCache(decoder.shape, 2, memory);
  await cache.reserve(2, 64, []);
  const tensors = memory.live.size;
  const make = () => {
    const logits = hostMemory.allocate(decoder.shape.type, [2, 1, decoder.vocabulary]);
    return new DecodeStep(decoder, cache.views(0, 2), logits, 2, 64);
  };
  // Views of all tensors of the cache; mirrors of ids, mask, positions, logits and likeliest.
  for (let room = 0; room < tensors + 5; room++) {
    memory.room = room;
    t.throws(make, { message: 'the memory is full' });
    t.is(memory.live.size, tensors, `with room for ${room}`);
  }
  // All of them fit, but this session takes no mirrors: they are not on a GPU.
  memory.room = tensors + 5;
  t.throws(make, { message: /mirrored by a tensor .* on the GPU/ });
  t.is(memory.room, 0);
  t.is(memory.live.size, tensors);
  cache.clear();
  t.is(memory.live.size, 0);
});

test('a step gives its views back when it is disposed of', async (t) => {
  const memory = new CountedMemory(false);
  const decoder = rowDecoder(memory);
  const cache = new RowCache(decoder.shape, 2, memory);
  await cache.reserve(2, 64, []);
  const tensors = memory.live.size;
  const logits = hostMemory.allocate(decoder.shape.type, [2, 1, decoder.vocabulary]);
  const step = new DecodeStep(decoder, cache.views(0, 2), logits, 2, 64);
  t.is(memory.live.size, 2 * tensors);
  await step.run(
    [
      { past: 0, token: 5 },
      { past: 0, token: 6 },
    ],
    true,
  );
  await step.dispose();
  t.is(memory.live.size, tensors);
});

test('texts whose step cannot be made end with its error, nothing stays, and later ones are served', async (t) => {
  const memory = new CountedMemory(false);
  const decoder = rowDecoder(memory);
  const shared = new TextGenerator(decoder, numberTokenizer, config);
  const options = { maxNewTokens: 4, stopTokenIds: [] };
  const tensors = 2 * decoder.shape.layers;
  // The cache and its views for the prompts fit, of the step's only one.
  memory.room = 2 * tensors + 1;
  const failing = shared.start(['5 6 7', '8 9'], options);
  for (const { result } of failing) await t.throwsAsync(result, { message: 'the memory is full' });
  await shared.scheduler.idle();
  t.is(memory.live.size, 0);
  memory.room = Number.POSITIVE_INFINITY;
  for (const { tokenIds, promptTokens } of await shared.generate(['5 6 7', '8 9'], options))
    t.is(tokenIds.length, promptTokens + 4);
});
