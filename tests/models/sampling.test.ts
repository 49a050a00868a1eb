// Choosing tokens and finding the end of a text, on logits and strings made by hand.
import test from 'ava';
import fc from 'fast-check';
import { ModelFolderError } from '../../models/errors.js';
import { negativeExponential } from '../../models/generation/exponential.js';
import { resolveOptions } from '../../models/generation/options.js';
import { Random } from '../../models/generation/random.js';
import { argmax, largest, logprobs, Sampler } from '../../models/generation/sampling.js';
import { StopStrings } from '../../models/generation/stopping.js';
import { TextAssembler } from '../../models/generation/text-assembler.js';

const logits = Float32Array.of(1, 3, 2, -1, 0, 2.5);

function draws(options: Parameters<typeof resolveOptions>[0], count = 4000, prompt: number[] = []): number[] {
  const counts = new Array<number>(logits.length).fill(0);
  for (let seed = 0; seed < count; seed++) {
    const token = new Sampler(resolveOptions({ temperature: 1, seed, ...options }, 2), prompt).sample(logits);
    counts[token] = (counts[token] as number) + 1 / count;
  }
  return counts;
}

function softmax(values: readonly number[]): number[] {
  const weights = values.map(Math.exp);
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

function close(found: readonly number[], expected: readonly number[], tolerance = 0.03): boolean {
  return found.every((value, i) => Math.abs(value - (expected[i] as number)) < tolerance);
}

test('draws have the distribution of temperature, top-k and top-p', (t) => {
  t.true(close(draws({}), softmax([...logits])));
  t.true(close(draws({ temperature: 0.5 }), softmax([...logits].map((x) => 2 * x))));
  const [, one, , , , two] = softmax([0, 3, 0, 0, 0, 2.5].map((x) => x || -100));
  t.true(close(draws({ topK: 2 }), [0, one as number, 0, 0, 0, two as number]));
  // 0.44, 0.27, 0.16 …: 0.6 needs two of them.
  t.true(close(draws({ topP: 0.6 }), [0, one as number, 0, 0, 0, two as number]));
  t.deepEqual(draws({ topP: 0 }), [0, 1, 0, 0, 0, 0].map((x) => (x ? draws({ topP: 0 })[1] : 0)) as number[]);
  // After top-k, top-p counts in shares of what is left: 0.62 is enough for 0.6.
  t.true((draws({ topK: 2, topP: 0.6 })[1] as number) > 0.99);
});

test('greedy takes the likeliest; penalties and bans change which that is; the logits stay as they are', (t) => {
  const before = [...logits];
  const greedy = (options: Parameters<typeof resolveOptions>[0], prompt: number[] = []) =>
    new Sampler(resolveOptions(options, 2), prompt);
  t.is(greedy({}).sample(logits), 1);
  t.is(greedy({}).sample(logits, [1]), 5);
  t.is(greedy({ repetitionPenalty: 2 }, [1]).sample(logits), 5);
  const present = greedy({ presencePenalty: 1 }, [1]);
  t.deepEqual(
    [0, 0, 0, 0].map(() => present.sample(logits)),
    [1, 5, 1, 1],
  );
  const frequent = greedy({ frequencyPenalty: 0.4 });
  t.deepEqual(
    [0, 0, 0, 0].map(() => frequent.sample(logits)),
    [1, 1, 5, 1],
  );
  t.deepEqual([...logits], before);
  t.throws(() => greedy({}).sample(Float32Array.of(Number.NaN, 1)), { instanceOf: ModelFolderError, message: /NaN/ });
  t.throws(() => greedy({}).sample(Float32Array.of(1, 2), [0, 1]), { message: /-Infinity/ });
});

test('no token is chosen by logits that are not finite; those without a chance may have −∞', (t) => {
  const greedy = [{ temperature: 0 }, { topK: 1 }, { temperature: 0, presencePenalty: 1 }];
  for (const options of [...greedy, {}, { topK: 3 }, { topP: 0.9 }, { topK: 3, topP: 0.9 }]) {
    const sampler = () => new Sampler(resolveOptions({ temperature: 1, seed: 1, ...options }, 2), []);
    for (const bad of [Number.POSITIVE_INFINITY, Number.NaN])
      t.throws(() => sampler().sample(Float32Array.of(1, 2, bad, 4, 5, 6, 0)), {
        instanceOf: ModelFolderError,
        message: new RegExp(`logit ${bad} for token 2`),
      });
    t.is(sampler().sample(Float32Array.of(Number.NEGATIVE_INFINITY, 2, Number.NEGATIVE_INFINITY)), 1);
  }
});

test('a seed repeats the draws, another gives others; the generator is uniform', (t) => {
  const sequence = (seed: number) => {
    const sampler = new Sampler(resolveOptions({ temperature: 1, seed }, 2), []);
    return Array.from({ length: 50 }, () => sampler.sample(logits));
  };
  t.deepEqual(sequence(7), sequence(7));
  t.notDeepEqual(sequence(7), sequence(8));
  t.notDeepEqual(sequence(7), sequence(7 + 2 ** 32));
  const random = new Random(1);
  const buckets = new Array<number>(10).fill(0);
  for (let i = 0; i < 100_000; i++) {
    const at = Math.floor(10 * random.next());
    buckets[at] = (buckets[at] as number) + 1;
  }
  t.true(
    buckets.every((count) => Math.abs(count - 10_000) < 500),
    `${buckets}`,
  );
});

test('log-probabilities are those of the model', (t) => {
  const expected = softmax([...logits]).map(Math.log);
  const { logprob, top } = logprobs(logits, 4, 3);
  t.true(Math.abs(logprob - (expected[4] as number)) < 1e-6);
  t.deepEqual(
    top.map(({ tokenId }) => tokenId),
    [1, 5, 2],
  );
  t.true(top.every((one) => Math.abs(one.logprob - (expected[one.tokenId] as number)) < 1e-6));
});

test('the largest of any numbers, falling, the first of equals', (t) => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: -5, max: 5 }), { minLength: 1 }), fc.nat(12), (values, count) => {
      const sorted = values.map((_, i) => i).sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);
      const scores = Float32Array.from(values);
      t.deepEqual([...largest(scores, count)], sorted.slice(0, count));
      t.is(argmax(scores), sorted[0] as number);
    }),
  );
  t.is(argmax(Float32Array.of(1, Number.NaN, 2, Number.NaN, Number.POSITIVE_INFINITY)), 1);
});

test('options out of range are refused by name', (t) => {
  for (const [options, message] of [
    [{ temperature: -1 }, /temperature is -1, expected a number from 0/],
    [{ topP: 1.5 }, /topP is 1.5/],
    [{ topK: 1.5 }, /topK is 1.5, expected a whole number/],
    [{ maxNewTokens: Number.NaN }, /maxNewTokens is NaN/],
    [{ seed: -1 }, /seed is -1/],
    [{ stop: [''] }, /stop string is empty/],
    [{ temperature: '0.7' }, /temperature is "0\.7", expected a number/],
    [{ topK: null }, /topK is null, expected a whole number/],
    [{ stop: 5 }, /stop is 5, expected a string or a list of strings/],
    [{ stop: null }, /stop is null, expected a string/],
    [{ stop: ['a', 5] }, /stop is \["a",5\], expected a string/],
    [{ stopTokenIds: 2 }, /stopTokenIds is 2, expected a list of token ids/],
    [{ stopTokenIds: [2, '3'] }, /stopTokenIds is \[2,"3"\]/],
    [{ signal: {} }, /signal is \{\}, expected an AbortSignal/],
    [{ streamer: console.log }, /streamer is .*, expected an object with put\(\) and end\(\)/],
    ['fast', /given as options of text generation is "fast", expected an object with any of temperature, /],
  ] as const)
    t.throws(() => resolveOptions(options as object, 2), { instanceOf: ModelFolderError, message });
});

test('names that are no option are refused, with the one that is meant', (t) => {
  for (const [wrong, meant] of [
    ['max_new_tokens', 'maxNewTokens'],
    ['maxTokens', 'maxNewTokens'],
    ['top_p', 'topP'],
    ['logProbs', 'logprobs'],
    ['stopTokenId', 'stopTokenIds'],
    ['temprature', 'temperature'],
  ] as const)
    t.throws(() => resolveOptions({ [wrong]: 2 }, 2), {
      code: 'ERR_FLASHLLM_USAGE',
      message: new RegExp(
        `^unknown option '${wrong}' of text generation, which may be meant for ${meant}; expected one of: temperature, `,
      ),
    });
  t.throws(() => resolveOptions({ num_beams: 2 } as object, 2), {
    message: /^unknown option 'num_beams' of text generation; expected/,
  });
  // One that is left out in this way asks for nothing.
  t.notThrows(() => resolveOptions({ num_beams: undefined } as object, 2));
});

test('stop strings are found across pieces, and nothing that may be one is given out early', (t) => {
  const letters = fc.array(fc.constantFrom('a', 'b', '\n'), { maxLength: 12 }).map((list) => list.join(''));
  const word = letters.filter((text) => text !== '');
  fc.assert(
    fc.property(fc.array(letters), fc.array(word, { maxLength: 3 }), (pieces, stops) => {
      const whole = pieces.join('');
      // The end of the first stop string to be complete decides, piece by piece.
      let given = '';
      let read = '';
      let stopped = false;
      const finder = new StopStrings(stops);
      for (const piece of pieces) {
        read += piece;
        const found = finder.push(piece);
        given += found.text;
        stopped = found.stopped;
        if (stopped) break;
        t.true(read.startsWith(given));
        t.false(stops.some((stop) => read.includes(stop)));
      }
      if (!stopped) t.is(given + finder.flush(), whole);
      else t.is(given, read.slice(0, Math.min(...stops.map((s) => read.indexOf(s)).filter((at) => at >= 0))));
    }),
  );
});

test('unfinished characters come out at the end; nonsense bytes do not hold the text back for ever', (t) => {
  const bytes = { decode: (ids: readonly number[]) => new TextDecoder().decode(Uint8Array.from(ids)) };
  const whale = [...new TextEncoder().encode('🐋')];
  const assembler = new TextAssembler(bytes);
  t.is(whale.map((byte) => assembler.push(byte)).join('|'), '|||🐋');
  t.is(assembler.push(whale[0] as number), '');
  t.is(assembler.flush(), '\ufffd');
  t.is(assembler.flush(), '');
  const nonsense = new TextAssembler(bytes);
  const text = Array.from({ length: 40 }, () => nonsense.push(0x80)).join('') + nonsense.flush();
  t.is(text, '\ufffd'.repeat(40));
});

test('pieces together are the text, whatever its bytes: also a character that begins among nonsense', (t) => {
  const decode = (ids: readonly number[]) => new TextDecoder().decode(Uint8Array.from(ids));
  const pieces = (bytes: readonly number[]) => {
    const assembler = new TextAssembler({ decode });
    return [...bytes.map((byte) => assembler.push(byte)), assembler.flush()];
  };
  const parts = fc.constantFrom([0xef, 0xbf, 0xbd], [0xff], [0xf0, 0x9f], [0x80], [0x61], [...Buffer.from('😀')]);
  fc.assert(
    fc.property(fc.array(parts, { maxLength: 40 }), (list) => {
      const bytes = list.flat();
      t.is(pieces(bytes).join(''), decode(bytes));
    }),
    { numRuns: 2000 },
  );
});

test('pieces are the same where the tokenizer knows what a token adds', (t) => {
  const words = [
    [0xef, 0xbf, 0xbd],
    [0xff],
    [0xf0, 0x9f],
    [0x98],
    [0x80],
    [0x61],
    [0x62, 0xf0],
    [...Buffer.from('😀')],
    [],
  ];
  const decode = (ids: readonly number[]) =>
    new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(ids.flatMap((id) => words[id] ?? [])));
  const textOf = (id: number) => (decode([id]).includes('\ufffd') ? undefined : decode([id]));
  t.deepEqual(
    words.map((_, id) => textOf(id)).filter((text) => text !== undefined),
    ['a', '😀', ''],
  );
  fc.assert(
    fc.property(fc.array(fc.nat(words.length - 1), { maxLength: 40 }), (ids) => {
      const assembler = new TextAssembler({ decode, textOf });
      t.is([...ids.map((id) => assembler.push(id)), assembler.flush()].join(''), decode(ids));
    }),
    { numRuns: 2000 },
  );
  // A whole character is not held back, whatever came before it, nor what is whole decoded again.
  const once = new TextAssembler({ decode: () => t.fail() as never, textOf });
  t.deepEqual(
    [5, 7, 8, 5].map((id) => once.push(id)),
    ['a', '😀', '', 'a'],
  );
});

test('the quick exponential equals Math.exp', (t) => {
  let worst = 0;
  for (let x = 0; x < 43; x += 0.000137) worst = Math.max(worst, Math.abs(negativeExponential(x) / Math.exp(-x) - 1));
  t.true(worst < 1e-10, `${worst}`);
  t.is(negativeExponential(0), 1);
  t.deepEqual([1e3, 1e300, Number.POSITIVE_INFINITY].map(negativeExponential), [0, 0, 0]);
  t.true(Number.isNaN(negativeExponential(Number.NaN)));
});
