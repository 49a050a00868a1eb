// A short load: 64 concurrent streams. `npm run bench:serve` is the long one, with latencies and memory.
import { rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import test from 'ava';
import { streamLoad } from '../../bench/stream-load.js';
import { readOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { shippedModel } from '../../models/shipped.js';
import { openTextModel } from '../../models/text-model.js';
import '../../provider/index.js';
import { createServer } from '../../serve/server.js';
import { temporaryFolder } from '../models/support/checkpoints.js';

test('64 streams at once, three rounds: none fails, nothing is left behind', async (t) => {
  const folder = await temporaryFolder();
  t.teardown(() => rm(folder, { recursive: true }));
  await exportOpt(shippedModel(), { output: folder });
  const { maxPositions, vocabSize } = await readOptConfig(folder);
  const session = { executionProviders: ['flashllm', 'cpu'], intraOpNumThreads: 1 };
  const model = await openTextModel(folder, session, { maxBatch: 48, maxWaiting: 64 });
  const { app, close } = createServer([{ name: 'opt-14m', model, maxPositions, vocabSize }]);
  await app.listen({ host: '127.0.0.1', port: 0 });
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
  const { scheduler } = model.generator;
  let most = 0;
  // Long enough that all places are taken before the first texts end: a step of prompts goes with each of tokens.
  const tokensOf = (index: number) => 15 + ((7 * index) % 20);
  const result = await streamLoad({
    url,
    streams: 64,
    next: (index) => {
      most = Math.max(most, scheduler.active);
      if (index >= 192) return undefined;
      const prompt = 'It was a dark night. '.repeat(1 + (index % 5));
      return { prompt, max_tokens: tokensOf(index), temperature: 0.8, seed: index, ignore_eos: true };
    },
  });
  t.deepEqual(result.failures, []);
  t.is(result.requests, 192);
  t.is(result.firstToken.length, 192);
  t.true(most > 32 && most <= 48, `${most} sequences at once`);
  const metrics = await (await fetch(`${url}/metrics`)).text();
  const wanted = Array.from({ length: 192 }, (_, index) => tokensOf(index)).reduce((sum, tokens) => sum + tokens, 0);
  t.regex(metrics, new RegExp(`flashllm_generated_tokens_total\\{model="opt-14m"\\} ${wanted}\\n`));
  await scheduler.idle();
  t.deepEqual([scheduler.active, scheduler.queued, scheduler.cacheBytes], [0, 0, 0]);
  await close(0);
  await model.session.release();
});

test('a load is refused for any other machine', async (t) => {
  await t.throwsAsync(streamLoad({ url: 'http://10.0.0.1:80', streams: 1, next: () => undefined }), {
    message: /found 10\.0\.0\.1/,
  });
});
