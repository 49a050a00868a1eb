// Decoder takes any model with Optimum's names: here those of other exporters, with and without position_ids, float32
// and float16.
import { readdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { InferenceSession } from 'onnxruntime-node';
import { rewriteModel } from '../../graph-passes/index.js';
import { Decoder } from '../../models/decoder.js';
import { ModelFolderError } from '../../models/errors.js';
import { TextGenerator } from '../../models/text-generator.js';
import '../../provider/index.js';
import { temporaryFolder } from './support/checkpoints.js';

const exportsFolder = fileURLToPath(new URL('../fixtures/exports/', import.meta.url));
const files = (await readdir(exportsFolder)).filter((file) => file.endsWith('.onnx'));
const ids = [3, 17, 200, 41, 5, 99];

function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((largest, value, i) => Math.max(largest, Math.abs(value - (b[i] as number))), 0);
}

for (const file of files) {
  test.serial(`${file}: prefill, then tokens one by one, equal one pass; so does our session`, async (t) => {
    const output = `${await temporaryFolder()}/model.onnx`;
    await rewriteModel({ input: exportsFolder + file, output, minSparsity: 0 });
    const tolerance = file.includes('fp16') ? 0.05 : 1e-4;
    const stock = new Decoder(await InferenceSession.create(exportsFolder + file, { executionProviders: ['cpu'] }));
    const whole = (await stock.step({ ids: [ids], mask: [ids.map(() => 1)] })).logits;
    for (const decoder of [
      stock,
      new Decoder(await InferenceSession.create(output, { executionProviders: ['flashllm', 'cpu'] })),
    ]) {
      let step = await decoder.step({ ids: [ids.slice(0, 3)], mask: [[1, 1, 1]] });
      for (let i = 0; i < 3; i++) t.true(largestDifference(step.logits.at(0, i), whole.at(0, i)) < tolerance);
      for (let i = 3; i < ids.length; i++) {
        step = await decoder.step({ ids: [[ids[i] as number]], mask: [new Array(i + 1).fill(1)], cache: step.cache });
        t.true(largestDifference(step.logits.at(0, 0), whole.at(0, i)) < tolerance, `token ${i}`);
      }
      t.deepEqual(step.cache['past_key_values.0.key']?.dims[2], ids.length);
      await decoder.session.release();
    }
  });
}

test.serial('rows of different lengths, and prompts without tokens, are refused', async (t) => {
  const decoder = new Decoder(await InferenceSession.create(exportsFolder + files[0]));
  await t.throwsAsync(decoder.step({ ids: [[1, 2], [3]], mask: [[1, 1], [1]] }), { instanceOf: RangeError });
  const silent = { encode: () => [], decode: () => '' };
  const generator = new TextGenerator(decoder, silent, { eosTokenId: 2, maxPositions: 32 });
  await t.throwsAsync(generator.generate(['']), { instanceOf: ModelFolderError, message: /no tokens/ });
  const one = new TextGenerator(decoder, { encode: () => [3], decode: () => '' }, { eosTokenId: 2, maxPositions: 32 });
  await t.throwsAsync(one.generate(['a'], { maxNewTokens: -1 }), { message: /maxNewTokens is -1/ });
});
