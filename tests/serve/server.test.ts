// The HTTP server, over a real socket, with the official client of OpenAI's API and with plain requests.
import { rm } from 'node:fs/promises';
import { type AddressInfo, connect } from 'node:net';
import test, { type ExecutionContext } from 'ava';
import OpenAI from 'openai';
import { Generation } from '../../models/generation/generation.js';
import { readOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { shippedModel } from '../../models/shipped.js';
import { TextGenerator } from '../../models/text-generator.js';
import { openTextModel, type TextModel } from '../../models/text-model.js';
import '../../provider/index.js';
import { ApiError } from '../../serve/errors.js';
import { createServer, type ServerOptions } from '../../serve/server.js';
import { temporaryFolder } from '../models/support/checkpoints.js';

const config = await readOptConfig(shippedModel());
let folder: string;
let model: TextModel;

test.before(async () => {
  folder = await temporaryFolder();
  await exportOpt(shippedModel(), { output: folder });
  model = await openTextModel(folder, { executionProviders: ['flashllm', 'cpu'], intraOpNumThreads: 1 });
});
test.after.always(() => rm(folder, { recursive: true }));

async function serve(
  t: ExecutionContext,
  scheduling = {},
  options: Partial<ServerOptions> = {},
  tokenizer = model.tokenizer,
) {
  const own = { ...model, tokenizer, generator: new TextGenerator(model.decoder, tokenizer, config, scheduling) };
  const server = createServer(
    [{ name: 'opt-14m', model: own, maxPositions: config.maxPositions, vocabSize: config.vocabSize }],
    options,
  );
  await server.app.listen({ host: '127.0.0.1', port: 0 });
  const url = `http://127.0.0.1:${(server.app.server.address() as AddressInfo).port}`;
  t.teardown(() => server.close(0));
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKey ?? 'none', maxRetries: 0 });
  const post = (body: unknown, init: RequestInit = {}) =>
    fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      ...init,
    });
  return { ...server, url, client, post, scheduler: own.generator.scheduler };
}

const greedy = { model: 'opt-14m', temperature: 0 };

async function expected(prompt: string, maxNewTokens: number): Promise<string> {
  return (await model.generator.generate([prompt], { maxNewTokens }))[0]?.text as string;
}

async function until(t: ExecutionContext, condition: () => boolean, what: string): Promise<void> {
  const started = performance.now();
  while (!condition() && performance.now() - started < 10_000) await new Promise((resolve) => setTimeout(resolve, 5));
  t.true(condition(), what);
}

test('the official client gets whole texts, several prompts and choices, and log-probabilities', async (t) => {
  const { client } = await serve(t);
  const one = await client.completions.create({ ...greedy, prompt: 'Call me', max_tokens: 12, logprobs: 2 });
  t.is(one.object, 'text_completion');
  t.is(one.choices[0]?.text, await expected('Call me', 12));
  t.is(one.choices[0]?.finish_reason, 'length');
  const { tokens, token_logprobs, top_logprobs, text_offset } = one.choices[0]?.logprobs ?? {};
  t.is(tokens?.join(''), one.choices[0]?.text);
  t.deepEqual([token_logprobs?.length, top_logprobs?.length, text_offset?.[0]], [12, 12, 0]);
  const prompt_tokens = model.tokenizer.encode('Call me').length;
  t.like(one.usage, { prompt_tokens, completion_tokens: 12, total_tokens: prompt_tokens + 12 });
  const many = await client.completions.create({
    model: 'opt-14m',
    prompt: ['a', 'Once upon'],
    n: 2,
    max_tokens: 3,
    temperature: 1,
  });
  t.deepEqual(
    many.choices.map(({ index }) => index),
    [0, 1, 2, 3],
  );
  const ids = model.tokenizer.encode('Call me');
  t.is(
    (await client.completions.create({ ...greedy, prompt: ids, max_tokens: 12 })).choices[0]?.text,
    one.choices[0]?.text,
  );
  t.deepEqual(
    (await client.models.list()).data.map(({ id }) => id),
    ['opt-14m'],
  );
});

test('the official client streams, ends at stop strings and is told the usage', async (t) => {
  const { client } = await serve(t);
  const whole = await expected('The state of our Union is', 30);
  const stop = whole.slice(20, 26);
  const stream = await client.completions.create({
    ...greedy,
    prompt: 'The state of our Union is',
    max_tokens: 30,
    stop: [stop],
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = '';
  let reason: string | null = null;
  let events = 0;
  let usage: unknown;
  for await (const event of stream) {
    events++;
    text += event.choices[0]?.text ?? '';
    reason = event.choices[0]?.finish_reason ?? reason;
    usage = event.usage ?? usage;
  }
  t.is(text, whole.slice(0, whole.indexOf(stop)));
  t.is(reason, 'stop');
  t.true(events > 4);
  t.like(usage, { prompt_tokens: model.tokenizer.encode('The state of our Union is').length });
});

test('concurrent streams share the batch and each gets its own text', async (t) => {
  const { client, scheduler, url } = await serve(t, { maxBatch: 8 });
  const prompts = Array.from({ length: 16 }, (_, i) => `Chapter ${i}. ${'It was a dark night. '.repeat(i % 4)}`);
  let most = 0;
  const texts = await Promise.all(
    prompts.map(async (prompt, i) => {
      const max_tokens = 5 + i;
      const stream = await client.completions.create({ ...greedy, prompt, max_tokens, stream: true });
      let text = '';
      for await (const event of stream) {
        text += event.choices[0]?.text ?? '';
        most = Math.max(most, scheduler.active);
      }
      return text;
    }),
  );
  t.true(most > 4 && most <= 8, `${most} at once`);
  for (const [i, text] of texts.entries()) t.is(text, await expected(prompts[i] as string, 5 + i));
  const metrics = await (await fetch(`${url}/metrics`)).text();
  t.regex(metrics, /flashllm_requests_total\{status="200"\} 16/);
  const tokens = Number(/flashllm_generated_tokens_total\{model="opt-14m"\} (\d+)/.exec(metrics)?.[1]);
  t.true(tokens > 16 && tokens <= 16 * 5 + 120);
  t.regex(metrics, /flashllm_sequences_running\{model="opt-14m"\} 0/);
  t.regex(metrics, /nodejs_eventloop_lag_p99_seconds /);
});

test('a client that leaves takes its sequences along, streaming or not', async (t) => {
  const { post, scheduler, url } = await serve(t, { maxBatch: 2 });
  const long = { ...greedy, prompt: 'a', max_tokens: 900, ignore_eos: true };
  for (const stream of [true, false]) {
    const controller = new AbortController();
    const response = post({ ...long, n: 3, stream }, { signal: controller.signal }).catch((error: Error) => error);
    await until(t, () => scheduler.active === 2 && scheduler.queued === 1, 'all have begun');
    if (stream) await ((await response) as Response).body?.getReader().read();
    controller.abort();
    await until(t, () => scheduler.active === 0 && scheduler.queued === 0, 'all are gone');
    await response;
  }
  const metrics = () => fetch(`${url}/metrics`).then((response) => response.text());
  t.regex(await metrics(), /flashllm_requests_total\{status="499"\} 2/);
});

test('a full queue answers 429, says when to come back, and takes requests again later', async (t) => {
  const { post, client, scheduler } = await serve(t, { maxBatch: 1, maxWaiting: 1 });
  const long = { ...greedy, prompt: 'a', max_tokens: 40, ignore_eos: true };
  const first = post(long);
  await until(t, () => scheduler.active === 1, 'the first runs');
  const second = post(long);
  await until(t, () => scheduler.queued === 1, 'the second waits');
  const refused = await post(long);
  t.is(refused.status, 429);
  t.is(refused.headers.get('retry-after'), '1');
  t.like(((await refused.json()) as { error: object }).error, { type: 'rate_limit_error', code: 'queue_full' });
  await t.throwsAsync(client.completions.create(long), { instanceOf: OpenAI.RateLimitError });
  for (const response of [await first, await second]) t.is(response.status, 200);
  t.is((await post(long)).status, 200);
  // More than there is ever place for: it would come back for ever.
  const never = await post({ ...long, n: 3 });
  t.is(never.status, 400);
  t.is(never.headers.get('retry-after'), null);
  t.regex(((await never.json()) as { error: { message: string } }).error.message, /3 texts .* at most 2/);
});

test('wrong requests are refused in OpenAI’s form, and none of them stops the server', async (t) => {
  const { post, url } = await serve(t, { maxBatch: 2, maxWaiting: 3 }, { maxPromptTokens: 20, bodyLimit: 2000 });
  const prompts =
    'a text, a list of token ids \\(whole numbers of at least 0\\), or a list of 1 to 128 of one of these';
  const id = 'a token id, a whole number of at least 0';
  const oneStop = 'a text of 1 to 1000 characters';
  const stops = 'a text of 1 to 1000 characters, or a list of up to 16 of these';
  const is = (found: string, expected: string) => new RegExp(`^${found}, expected ${expected}$`);
  const cases: [unknown, number, RegExp, string?][] = [
    [{}, 400, is('prompt is missing', prompts), 'prompt'],
    [[], 400, /^the body is \[\], expected a JSON object with the field prompt$/],
    [{ prompt: 7 }, 400, is('prompt is 7', prompts), 'prompt'],
    [{ prompt: null }, 400, is('prompt is null', prompts), 'prompt'],
    [{ prompt: [] }, 400, is('prompt is \\[\\]', prompts), 'prompt'],
    [{ prompt: [[]] }, 400, is('prompt\\[0\\] is \\[\\]', 'a list of token ids'), 'prompt'],
    [{ prompt: [[1], [2, -3]] }, 400, is('prompt\\[1\\]\\[1\\] is -3', id), 'prompt'],
    [{ prompt: [1, 'a'] }, 400, is('prompt\\[1\\] is "a"', id), 'prompt'],
    [{ prompt: ['', 7] }, 400, is('prompt\\[1\\] is 7', 'a text'), 'prompt'],
    [{ prompt: [null] }, 400, is('prompt is \\[null\\]', prompts), 'prompt'],
    [{ prompt: new Array(200).fill('a') }, 400, is('prompt is a list of 200', prompts), 'prompt'],
    [{ prompt: [99999999] }, 400, /^a prompt has token 99999999, expected ids from 0 to 8191$/, 'prompt'],
    [{ prompt: [[1], [8192]] }, 400, /token 8192, expected ids from 0 to 8191/, 'prompt'],
    [{ prompt: 'a', max_tokens: '8' }, 400, is('max_tokens is "8"', 'a whole number from 0 to \\d+'), 'max_tokens'],
    [
      { prompt: 'a', max_tokens: 1e300 },
      400,
      /max_tokens is 1e\+300, expected a whole number from 0 to \d/,
      'max_tokens',
    ],
    [
      { prompt: 'a', min_tokens: 1e300 },
      400,
      /min_tokens is 1e\+300, expected a whole number from 0 to \d/,
      'min_tokens',
    ],
    [{ prompt: 'a', top_k: 1e300 }, 400, /top_k is 1e\+300, expected a whole number from 0 to \d/, 'top_k'],
    [
      { prompt: 'a', repetition_penalty: 0.001 },
      400,
      is('repetition_penalty is 0.001', 'a number from 0.01 to 10'),
      'repetition_penalty',
    ],
    [{ prompt: 'a', temperature: 3 }, 400, is('temperature is 3', 'a number from 0 to 2'), 'temperature'],
    [{ prompt: 'a', temperature: '0.5' }, 400, is('temperature is "0.5"', 'a number from 0 to 2'), 'temperature'],
    [{ prompt: 'a', stop: '' }, 400, is('stop is ""', stops), 'stop'],
    [{ prompt: 'a', stop: ['b', ''] }, 400, is('stop\\[1\\] is ""', oneStop), 'stop'],
    [
      { prompt: 'a', stop: ['b', 'c'.repeat(1001)] },
      400,
      is('stop\\[1\\] is a text of 1001 characters', oneStop),
      'stop',
    ],
    [{ prompt: 'a', stop: new Array(17).fill('b') }, 400, is('stop is a list of 17', stops), 'stop'],
    [
      { prompt: 'a', stream_options: { include_usage: 1 } },
      400,
      is('stream_options is {"include_usage":1}', '{ "include_usage": true or false }'),
      'stream_options',
    ],
    [{ prompt: 'a', echo: true }, 400, /echo is not supported/, 'echo'],
    [
      { prompt: 'a', n: 100, best_of: 100, model: 'other' },
      404,
      /'other' is not here; this server has 'opt-14m'/,
      'model',
    ],
    [{ prompt: ['a', 'b'], n: 100 }, 400, /200 texts/, 'n'],
    [{ prompt: ['a', 'b'], n: 3 }, 400, /^6 texts are asked for, expected at most 5 a request/, 'n'],
    [{ prompt: ['a', 'b', 'c', 'd', 'e', 'f'] }, 400, /^6 texts are asked for/, 'prompt'],
    [{ prompt: 'word '.repeat(50) }, 400, /tokens, expected at most 20/, 'prompt'],
    [{ prompt: 'word '.repeat(500) }, 413, /^the body is too large, expected at most 2000 bytes; shorten it$/],
  ];
  for (const [body, status, message, param = null] of cases) {
    const response = await post(body);
    const { error } = (await response.json()) as { error: { message: string; type: string; param: unknown } };
    t.is(response.status, status, JSON.stringify(body).slice(0, 80));
    t.regex(error.message, message);
    t.truthy(error.type);
    t.is(error.param, param, error.message);
  }
  t.is((await post(undefined, { body: '{' })).status, 400);
  // As curl sends what it is given with -d.
  const form = await post(undefined, {
    body: '{"prompt":"a"}',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
  });
  t.is(form.status, 415);
  t.regex(
    await form.text(),
    /type is application\/x-www-form-urlencoded, expected JSON: send the header content-type: application\/json"/,
  );
  for (const path of ['/v1/chat/completions', '/completions']) {
    const missing = await fetch(url + path, { method: 'POST' });
    t.is(missing.status, 404);
    t.true(
      (await missing.text()).includes(`there is no POST ${path}; this server has POST /v1/completions, GET /v1/mod`),
    );
  }
  for (const path of ['/v1/models/%zz', `/v1/models/${'a'.repeat(200)}`]) {
    const { error } = (await (await fetch(url + path)).json()) as { error: { message: string; type: string } };
    t.regex(error.type, /^(invalid_request|not_found)_error$/);
    t.truthy(error.message);
  }
  t.is((await fetch(`${url}/v1/models/%zz`)).status, 400);
  t.is((await post({ prompt: 'a', max_tokens: 0 })).status, 200);
  const absent = await post({ prompt: 'a', max_tokens: 1, model: null, stream_options: { include_usage: null } });
  t.is(absent.status, 200);
  t.deepEqual(await (await fetch(`${url}/health`)).json(), { status: 'ok', running: 0, waiting: 0 });
});

test('each prompt is encoded once, however many texts are asked for, and others are served in between', async (t) => {
  const encoded: string[] = [];
  const encode = (text: string) => {
    encoded.push(text);
    const started = performance.now();
    while (performance.now() - started < 20);
    return model.tokenizer.encode(text);
  };
  const { post, url } = await serve(t, {}, {}, { ...model.tokenizer, encode });
  let healthy = 0;
  const prompts = Array.from({ length: 40 }, (_, i) => `Chapter ${i}`);
  const answer = post({ ...greedy, prompt: prompts, n: 3, max_tokens: 1 });
  await until(t, () => encoded.length > 0, 'it has begun');
  for (; encoded.length < prompts.length; healthy++) t.is((await fetch(`${url}/health`)).status, 200);
  t.true(healthy > 2, `${healthy} answers meanwhile`);
  t.is(((await (await answer).json()) as { choices: unknown[] }).choices.length, 120);
  t.deepEqual(encoded, prompts);
  // 1023 tokens have at most 94 kB.
  const huge = await post({ prompt: 'word '.repeat(20_000), n: 128 });
  t.is(huge.status, 400);
  const { error } = (await huge.json()) as { error: { message: string } };
  t.regex(error.message, /100000 bytes, expected at most 1023 tokens, of up to \d+ bytes; shorten it/);
  t.like(error, { param: 'prompt', code: 'context_length_exceeded' });
  t.deepEqual(encoded, prompts);
});

test('more tokens than the model’s context has place for are not made', async (t) => {
  const { client } = await serve(t);
  const { choices, usage } = await client.completions.create({
    ...greedy,
    ...{ prompt: new Array(config.maxPositions - 3).fill(5), max_tokens: Number.MAX_SAFE_INTEGER, ignore_eos: true },
  });
  t.is(choices[0]?.finish_reason, 'length');
  t.is(usage?.completion_tokens, 3);
});

test('an API key is demanded for all but health', async (t) => {
  const { client, url, post } = await serve(t, {}, { apiKey: 'sesame' });
  t.is((await post({ prompt: 'a' })).status, 401);
  for (const path of ['/v1/models', '/%761/models', '/metrics', '/nowhere'])
    t.is((await fetch(url + path)).status, 401, path);
  t.is((await fetch(`${url}/v1/models`, { headers: { authorization: 'Bearer sesam' } })).status, 401);
  for (const path of ['/health', '/', '/page.mjs']) t.is((await fetch(url + path)).status, 200, path);
  t.is((await client.completions.create({ ...greedy, prompt: 'a', max_tokens: 2 })).choices.length, 1);
});

test('pages of the origins that are named, and of no others, may use the server, with an API key too', async (t) => {
  const page = 'http://localhost:3000';
  const { url } = await serve(t, {}, { apiKey: 'sesame', cors: [page, 'https://app.example'] });
  const preflight = (at: string, origin: string) =>
    fetch(`${at}/v1/completions`, {
      method: 'OPTIONS',
      headers: {
        origin,
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'authorization,content-type,x-stainless-os',
      },
    });
  const asked = await preflight(url, page);
  t.is(asked.status, 204);
  t.like(Object.fromEntries(asked.headers), {
    'access-control-allow-origin': page,
    'access-control-allow-methods': 'GET, POST',
    'access-control-allow-headers': 'authorization,content-type,x-stainless-os',
    'access-control-max-age': '600',
    vary: 'origin',
  });
  const post = (origin: string, body: object, key = 'sesame') =>
    fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { origin, 'content-type': 'application/json', authorization: `Bearer ${key}` },
      body: JSON.stringify({ ...greedy, prompt: 'a', max_tokens: 1, ...body }),
    });
  // Errors and events can be read, too.
  for (const [status, response] of [
    [200, await post(page, {})],
    [200, await post('https://app.example', { stream: true })],
    [400, await post(page, { n: 0 })],
    [401, await post(page, {}, 'sesam')],
  ] as const) {
    t.is(response.status, status);
    t.regex(
      response.headers.get('access-control-allow-origin') ?? '',
      /^(http:\/\/localhost:3000|https:\/\/app.example)$/,
    );
    t.is(response.headers.get('access-control-expose-headers'), 'retry-after');
    await response.text();
  }
  const stranger = await preflight(url, 'http://localhost:3001');
  t.is(stranger.status, 403);
  t.is(stranger.headers.get('access-control-allow-origin'), null);
  t.regex(await stranger.text(), /pages of http:\/\/localhost:3001 may not use this server; start it with --cors/);
  t.is((await post('http://localhost:3001', {})).headers.get('access-control-allow-origin'), null);

  const open = await serve(t, {}, { cors: ['*'] });
  t.is((await preflight(open.url, page)).headers.get('access-control-allow-origin'), '*');
  const closed = await serve(t);
  const refused = await preflight(closed.url, page);
  t.deepEqual([refused.status, refused.headers.get('access-control-allow-origin')], [404, null]);
});

test('a text that ends when another of its request has just failed does not bring the server down', async (t) => {
  const texts = [new Generation(), new Generation()] as const;
  const start = () => {
    setImmediate(() => {
      texts[0].cancel(new ApiError(500, 'it stumbled'));
      texts[1].sink.piece({ tokenId: 3, text: 'b' });
      texts[1].sink.end({ tokenIds: [2, 3], promptTokens: 1, text: 'b', finishReason: 'stop' });
    });
    return texts;
  };
  const generator = { scheduler: model.generator.scheduler, start } as unknown as TextGenerator;
  const server = createServer([{ name: 'm', model: { ...model, generator }, maxPositions: 9, vocabSize: 9999 }]);
  const address = await server.app.listen({ host: '127.0.0.1', port: 0 });
  t.teardown(() => server.close(0));
  const response = await fetch(`${address}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ prompt: 'a', n: 2, stream: true }),
  });
  t.regex(await response.text(), /it stumbled/);
});

test('a request that does not arrive in time ends its connection, headers or body; a long answer is not cut', async (t) => {
  const requestTimeout = 500;
  const text = new Generation();
  const start = () => {
    text.sink.piece({ tokenId: 3, text: 'b' });
    setTimeout(
      () => text.sink.end({ tokenIds: [2, 3], promptTokens: 1, text: 'b', finishReason: 'stop' }),
      3 * requestTimeout,
    );
    return [text];
  };
  const generator = { scheduler: model.generator.scheduler, start } as unknown as TextGenerator;
  const server = createServer([{ name: 'm', model: { ...model, generator }, maxPositions: 9, vocabSize: 9999 }], {
    requestTimeout,
  });
  const address = await server.app.listen({ host: '127.0.0.1', port: 0 });
  t.teardown(() => server.close(0));
  const json = { 'content-type': 'application/json' };
  const body = JSON.stringify({ prompt: 'a', stream: true });
  const long = fetch(`${address}/v1/completions`, { method: 'POST', headers: json, body });
  const { port } = server.app.server.address() as AddressInfo;
  const head = 'POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n';
  for (const [sent, more] of [
    [head, 'x'],
    [`${head}content-length: 1000\r\n\r\n`, ' '],
  ] as const) {
    const socket = connect(port, '127.0.0.1').setEncoding('utf8');
    socket.write(sent);
    // Never silent for long: only the time since its first byte tells that it is late.
    const dripping = setInterval(() => socket.write(more), 100);
    let held = false;
    const patience = setTimeout(() => {
      held = true;
      socket.destroy();
    }, 20 * requestTimeout);
    let answer = '';
    socket.on('data', (part) => {
      answer += part;
    });
    // A byte that meets the closed connection resets it, and the answer may be lost.
    socket.on('error', () => {});
    await new Promise((closed) => socket.once('close', closed));
    clearInterval(dripping);
    clearTimeout(patience);
    t.false(held);
    t.regex(answer, /^(HTTP\/1\.1 408 |$)/);
  }
  t.regex(await (await long).text(), /"finish_reason":"stop".*\n\ndata: \[DONE\]\n\n$/);
});

test('a request that is late or is not HTTP gets an error in OpenAI’s form; those for completions are counted', async (t) => {
  const { app, url } = await serve(t, {}, { requestTimeout: 500 });
  const { port } = app.server.address() as AddressInfo;
  const post = (path: string) => `POST ${path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n`;
  const late = /did not arrive within 0\.5 s/;
  for (const [sent, status, reason] of [
    [post('/v1/completions'), 408, late],
    [`${post('/v1/completions')}content-length: 9\r\n\r\n{`, 408, late],
    [`${post('/nowhere')}content-length: 9\r\n\r\n{`, 408, late],
    [`${post('/v1/completions')}transfer-encoding: chunked\r\n\r\nnone\r\n`, 400, /not valid HTTP/],
    ['hello\r\n', 400, /not valid HTTP/],
    [`${post('/v1/completions')}x: ${'x'.repeat(2 ** 15)}`, 431, /too long/],
  ] as const) {
    const socket = connect(port, '127.0.0.1').setEncoding('utf8');
    t.teardown(() => socket.destroy());
    let answer = '';
    socket.on('data', (part) => {
      answer += part;
    });
    socket.on('error', () => {});
    socket.write(sent);
    await new Promise((closed) => socket.once('close', closed));
    const [head = '', body = ''] = answer.split('\r\n\r\n');
    t.regex(head, new RegExp(`^HTTP/1\\.1 ${status} `), sent.slice(0, 200));
    t.regex(head, new RegExp(`content-length: ${body.length}\r\n`));
    const { error } = JSON.parse(body);
    t.like(error, { type: 'invalid_request_error', param: null, code: null });
    t.regex(error.message, reason);
  }
  const metrics = await (await fetch(`${url}/metrics`)).text();
  // Headers that do not arrive do not tell what they were for.
  t.deepEqual(metrics.match(/flashllm_requests_total.*\}.*/g), [
    'flashllm_requests_total{status="408"} 1',
    'flashllm_requests_total{status="400"} 1',
  ]);
});

test('closing lets requests end; when the grace is over it ends them with an error', async (t) => {
  const gentle = await serve(t);
  const short = gentle.post({ ...greedy, prompt: 'Call me', max_tokens: 20, stream: true });
  await until(t, () => gentle.scheduler.active === 1, 'it runs');
  const closed = gentle.close(20_000);
  t.regex(await (await short).text(), /"finish_reason":"length".*\n\ndata: \[DONE\]\n\n$/);
  await closed;
  await t.throwsAsync(fetch(`${gentle.url}/health`));

  const hasty = await serve(t);
  const long = hasty.post({ ...greedy, prompt: 'a', max_tokens: 1000, ignore_eos: true, stream: true });
  await until(t, () => hasty.scheduler.active === 1, 'it runs');
  await hasty.close(30);
  t.regex(await (await long).text(), /the server is shutting down.*\n\n$/);
  t.is(hasty.scheduler.active, 0);
});

test('a client that has stopped reading does not keep the server from closing', async (t) => {
  const { app, post, scheduler, close } = await serve(t);
  // What is written stays in the socket, as it does where the other side takes nothing more.
  app.server.on('connection', (socket) => socket.cork());
  const body = { ...greedy, prompt: 'a', n: 8, max_tokens: 60, logprobs: 20, ignore_eos: true, stream: true };
  const request = t.throwsAsync(post(body));
  await until(t, () => scheduler.active === 8, 'they run');
  await scheduler.idle();
  await close(30);
  await request;
});
