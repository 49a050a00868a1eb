// What is sent of texts, without a server: offsets of tokens, and a reader that is slower than the model.
import { EventEmitter } from 'node:events';
import { readFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import test from 'ava';
import { Generation } from '../../models/generation/generation.js';
import { type GenerateOptions, resolveOptions } from '../../models/generation/options.js';
import { TextSequence } from '../../models/generation/sequence.js';
import { shippedHeldOutText, shippedModel } from '../../models/shipped.js';
import { loadTokenizer, type Tokenizer } from '../../models/tokenizer.js';
import { Completion } from '../../serve/completions.js';

const tokenizer = await loadTokenizer(shippedModel());
const prose = (await readFile(shippedHeldOutText(), 'utf8')).slice(0, 2000);

/** A generation that makes the tokens of a text, all at once. */
function generate(text: string, options: GenerateOptions = {}): Generation {
  const ids = tokenizer.encode(text, { special: false });
  const generation = new Generation();
  const resolved = resolveOptions({ logprobs: 0, ...options }, 2);
  const sequence = new TextSequence([2], ids.length, resolved, tokenizer, generation.sink);
  for (const id of ids) if (sequence.next(new Float32Array(8192).fill(-9).fill(9, id, id + 1)) === undefined) break;
  return generation;
}

/** A response that keeps events; `full` says that each is one too many. */
class Response extends EventEmitter {
  readonly events: string[] = [];
  readonly destroyed = false;
  most = 0;
  constructor(private readonly full = false) {
    super();
  }
  write(event: string): boolean {
    this.events.push(event);
    if (this.full) setTimeout(() => this.emit('drain'), 1);
    return !this.full;
  }
  override on(name: string, listener: () => void): this {
    super.on(name, listener);
    this.most = Math.max(this.most, this.listenerCount('drain'));
    return this;
  }
  end(event: string): void {
    this.events.push(event);
  }
}

interface Logprobs {
  tokens: string[];
  top_logprobs: Record<string, number>[];
  text_offset: number[];
}

interface Sent {
  choices: { text: string; logprobs: Logprobs | null }[];
}

async function whole(generations: Generation[], texts: Tokenizer = tokenizer): Promise<Sent> {
  return JSON.parse(await new Completion(generations, texts, 'm', 1).whole());
}

async function both(text: string, options: GenerateOptions = {}) {
  const { choices } = await whole([generate(text, options)]);
  const response = new Response();
  await new Completion([generate(text, options)], tokenizer, 'm', 1).stream(
    response as unknown as ServerResponse,
    false,
  );
  const pieces = response.events.slice(0, -1).flatMap((event) => (JSON.parse(event.slice(6)) as Sent).choices);
  const [first] = choices;
  return {
    text: first?.text,
    logprobs: first?.logprobs,
    tokens: first?.logprobs?.tokens as string[],
    whole: first?.logprobs?.text_offset as number[],
    streamed: pieces.flatMap(({ logprobs }) => logprobs?.text_offset ?? []),
  };
}

test('offsets of tokens are the same streamed and not, also while text is held back for a stop string', async (t) => {
  const text = 'Once upon a time there was a king';
  const { tokens, whole, streamed } = await both(text, { stop: ['upon a time, long ago', 'king of'] });
  let offset = 0;
  t.deepEqual(
    whole,
    tokens.map((token) => {
      offset += token.length;
      return offset - token.length;
    }),
  );
  t.deepEqual(streamed, whole);
});

test('offsets lie in the text where a character has several tokens', async (t) => {
  const { text, tokens, whole, streamed } = await both('a 😀 b 日本 c');
  t.is(text, 'a 😀 b 日本 c');
  t.deepEqual(streamed, whole);
  // Names of parts of characters say which.
  t.deepEqual(tokens.slice(2, 7), ['bytes:\\xf0', 'bytes:\\x9f', 'bytes:\\x98', 'bytes:\\x80', ' b']);
  const last = tokens.length - 1;
  t.is(text?.slice(whole[last]), tokens[last]);
  t.is(text?.slice(whole[tokens.indexOf(' b')]), ' b 日本 c');
});

/** What is sent of a text of one token, by default the likeliest of three. */
async function likeliest(three: [number, number, number], texts: Tokenizer = tokenizer, chosen = three[0]) {
  const top = three.map((tokenId, i) => ({ tokenId, logprob: -i - 0.5 }));
  const generation = new Generation();
  const logprobs = [{ logprob: top.find(({ tokenId }) => tokenId === chosen)?.logprob ?? -9, top }];
  generation.sink.end({ tokenIds: [2, chosen], promptTokens: 1, text: '', finishReason: 'length', logprobs });
  const { choices } = await whole([generation], texts);
  return choices[0]?.logprobs?.top_logprobs[0];
}

test('of tokens that are called the same, the likeliest is told; parts of characters are told apart', async (t) => {
  const parts = tokenizer.encode('😀', { special: false });
  // The first two are special, and so without text.
  t.deepEqual(await likeliest([0, 1, parts[0] as number]), { '': -0.5, 'bytes:\\xf0': -2.5 });
  const apart = { 'bytes:\\xf0': -0.5, 'bytes:\\x9f': -1.5, 'bytes:\\x98': -2.5 };
  t.deepEqual(await likeliest(parts.slice(0, 3) as [number, number, number]), apart);
  const mixed = { ...tokenizer, textOf: () => undefined, bytesOf: () => Buffer.from(' ~\xe2\x80', 'latin1') };
  t.deepEqual(await likeliest([7, 8, 9], mixed), { 'bytes: ~\\xe2\\x80': -0.5 });
});

test('the chosen token is told beside the likeliest ones', async (t) => {
  const [one, two, three, four] = tokenizer.encode('one two three four', { special: false }) as number[];
  const top = [one, two, three] as [number, number, number];
  t.deepEqual(await likeliest(top, tokenizer, two), { one: -0.5, ' two': -1.5, ' three': -2.5 });
  t.deepEqual(await likeliest(top, tokenizer, four), { one: -0.5, ' two': -1.5, ' three': -2.5, ' four': -9 });
  const { logprobs } = await both('one');
  t.deepEqual(logprobs?.top_logprobs.map(Object.keys), [['one']]);
});

test('the event loop turns while many log-probabilities are written, and no token is decoded for each', async (t) => {
  const ids = tokenizer.encode(prose, { special: false });
  const top = ids.slice(0, 20).map((tokenId) => ({ tokenId, logprob: -3 }));
  const generations = Array.from({ length: 16 }, () => {
    const generation = new Generation();
    const logprobs = ids.map(() => ({ logprob: -1, top }));
    generation.sink.end({ tokenIds: ids, promptTokens: 0, text: prose, finishReason: 'length', logprobs });
    return generation;
  });
  let decoded = 0;
  const decode = (some: readonly number[]) => {
    decoded++;
    return tokenizer.decode(some);
  };
  let turns = 0;
  const counter = setInterval(() => turns++, 1);
  const started = performance.now();
  const { choices } = await whole(generations, { ...tokenizer, decode });
  clearInterval(counter);
  t.is(choices[15]?.logprobs?.tokens.join(''), prose);
  // A turn each 5 ms, or where other processes take their time, fewer.
  t.true(turns > (performance.now() - started) / 50, `${turns} turns`);
  t.is(decoded, 0);
});

test('many texts wait for a slow reader together', async (t) => {
  const response = new Response(true);
  const texts = Array.from({ length: 20 }, () => generate('Once upon a time'));
  await new Completion(texts, tokenizer, 'm', 1).stream(response as unknown as ServerResponse, true);
  t.is(response.most, 1);
  const pieces = tokenizer.encode('Once upon a time', { special: false }).length;
  // Each text's tokens and end, the usage, and the end of all.
  t.is(response.events.length, 20 * (pieces + 1) + 2);
});
