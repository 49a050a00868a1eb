// Perplexity of logits made by hand.

import test from 'ava';
import { Tensor } from 'onnxruntime-node';
import { type Decoder, Logits, type StepInput } from '../../models/decoder.js';
import { measurePerplexity } from '../../models/perplexity.js';

const VOCABULARY = 4;

/** Gives every token the same logits, but NaN for those after a token 3. */
const decoder = {
  step: async ({ ids }: StepInput) => {
    const data = Float32Array.from((ids[0] ?? []).flatMap((id) => Array(VOCABULARY).fill(id === 3 ? Number.NaN : 0)));
    return { logits: new Logits(new Tensor('float32', data, [1, data.length / VOCABULARY, VOCABULARY])), cache: {} };
  },
} as unknown as Decoder;

test('of equal logits it is the size of the vocabulary', async (t) => {
  const { perplexity, tokens } = await measurePerplexity(decoder, [0, 1, 2, 0, 1], { window: 3 });
  t.is(tokens, 3);
  t.true(Math.abs(perplexity / VOCABULARY - 1) < 1e-12);
});

test('a model that gives no numbers is an error that says where', async (t) => {
  await t.throwsAsync(measurePerplexity(decoder, [0, 1, 2, 0, 3, 1], { window: 3 }), {
    name: 'ModelFolderError',
    message: /logits that are no numbers for tokens 3 to 4, .* run 'flashllm verify'/,
  });
});
