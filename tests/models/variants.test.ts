// Every kind of OPT, exported and run in a stock session, against an independent float64 implementation.
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import type { FloatType } from '../../models/checkpoint/types.js';
import { type Cache, Decoder } from '../../models/decoder.js';
import { parseOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import type { OptAttention, OptDtype } from '../../models/opt/graph-context.js';
import { randomParameters, temporaryFolder, tinyConfig, writeCheckpoint } from './support/checkpoints.js';
import { referenceLogits } from './support/reference-opt.js';

interface Variant {
  readonly fields: Record<string, unknown>;
  readonly stored?: FloatType;
  readonly dtype?: OptDtype;
  readonly attention?: OptAttention;
}

const variants: Record<string, Variant> = {
  'pre-norm': { fields: {} },
  'post-norm with projections (350M)': { fields: { do_layer_norm_before: false, word_embed_proj_dim: 24 } },
  'pre-norm with projections': { fields: { word_embed_proj_dim: 20 } },
  'final norm removed': { fields: { _remove_final_layer_norm: true } },
  'no biases': { fields: { enable_bias: false } },
  'norms without parameters': { fields: { layer_norm_elementwise_affine: false } },
  'no biases, norms without parameters': { fields: { enable_bias: false, layer_norm_elementwise_affine: false } },
  'untied head': { fields: { tie_word_embeddings: false } },
  'untied head with projections': { fields: { tie_word_embeddings: false, word_embed_proj_dim: 16 } },
  gelu: { fields: { activation_function: 'gelu' } },
  'one head, one layer': { fields: { num_attention_heads: 1, num_hidden_layers: 1 } },
  'heads of 4': { fields: { num_attention_heads: 8 } },
  'odd sizes': {
    fields: { hidden_size: 15, word_embed_proj_dim: 7, ffn_dim: 11, num_attention_heads: 3, vocab_size: 13 },
  },
  'ONNX Attention': { fields: {}, attention: 'onnx' },
  'ONNX Attention, post-norm': {
    fields: { do_layer_norm_before: false, word_embed_proj_dim: 24 },
    attention: 'onnx',
  },
  'stored as float16': { fields: {}, stored: 'float16' },
  'stored as bfloat16': { fields: { tie_word_embeddings: false }, stored: 'bfloat16' },
  'computed in float16': { fields: {}, stored: 'float16', dtype: 'float16' },
  'bfloat16 computed in float16': { fields: { do_layer_norm_before: false }, stored: 'bfloat16', dtype: 'float16' },
  'float32 computed in float16': { fields: { word_embed_proj_dim: 24 }, dtype: 'float16' },
  'ONNX Attention in float16': { fields: { num_attention_heads: 8 }, stored: 'float16', dtype: 'float16' },
};

async function exported({ fields, stored = 'float32', dtype, attention }: Variant) {
  const json = tinyConfig(fields);
  const config = parseOptConfig(json);
  const parameters = randomParameters(config, stored);
  const folder = await writeCheckpoint(json, parameters, stored);
  const output = await temporaryFolder();
  const { modelPath } = await exportOpt(folder, { output, dtype, attention });
  const decoder = new Decoder(await InferenceSession.create(modelPath, { executionProviders: ['cpu'] }));
  await Promise.all([folder, output].map((path) => rm(path, { recursive: true })));
  const sequences = [11, 5, 8].map((length, row) =>
    Array.from({ length }, (_, i) => (i * 5 + row * 7 + 2) % config.vocabSize),
  );
  return { config, decoder, sequences, expected: sequences.map((ids) => referenceLogits(config, parameters, ids)) };
}

/** Largest difference between logits and the reference, relative to the reference's largest. */
function difference(found: Float32Array, expected: Float64Array): number {
  const scale = Math.max(1, ...expected.map(Math.abs));
  return Math.max(...expected.map((value, i) => Math.abs(value - (found[i] as number)) / scale));
}

for (const [name, variant] of Object.entries(variants)) {
  const tolerance = variant.dtype === 'float16' ? 8e-3 : 3e-6;

  test(`${name}: logits equal the reference`, async (t) => {
    const { decoder, sequences, expected } = await exported(variant);
    for (const [row, ids] of sequences.entries()) {
      const { logits } = await decoder.step({ ids: [ids], mask: [ids.map(() => 1)] });
      ids.forEach((_, i) => {
        t.true(difference(logits.at(0, i), expected[row]?.[i] as Float64Array) < tolerance);
      });
    }
  });

  for (const side of ['left', 'right'] as const) {
    test(`${name}: a batch padded on the ${side}, then steps with the cache, equal single sequences`, async (t) => {
      const { decoder, sequences, expected } = await exported(variant);
      const steps = 2;
      const prompts = sequences.map((ids) => ids.slice(0, ids.length - steps));
      const longest = Math.max(...prompts.map((ids) => ids.length));
      const pad = <T>(row: readonly T[], filler: T): T[] => {
        const padding = new Array<T>(longest - row.length).fill(filler);
        return side === 'left' ? [...padding, ...row] : [...row, ...padding];
      };
      const mask = prompts.map((ids) =>
        pad(
          ids.map(() => 1),
          0,
        ),
      );
      let { logits, cache } = await decoder.step({ ids: prompts.map((ids) => pad(ids, 1)), mask });
      prompts.forEach((ids, row) => {
        const first = side === 'left' ? longest - ids.length : 0;
        ids.forEach((_, i) => {
          t.true(
            difference(logits.at(row, first + i), expected[row]?.[i] as Float64Array) < tolerance,
            `prompt ${row}, token ${i}`,
          );
        });
      });
      for (let step = 0; step < steps; step++) {
        for (const row of mask) row.push(1);
        const ids = sequences.map((all, row) => [all[(prompts[row]?.length ?? 0) + step] as number]);
        ({ logits, cache } = await decoder.step({ ids, mask, cache }));
        prompts.forEach((prompt, row) => {
          t.true(
            difference(logits.at(row, 0), expected[row]?.[prompt.length + step] as Float64Array) < tolerance,
            `step ${step}, row ${row}`,
          );
        });
      }
    });
  }
}

test('several tokens on top of a cache equal the whole sequence', async (t) => {
  for (const attention of ['onnx', 'group-query'] as const) {
    const { decoder, sequences, expected } = await exported({ fields: {}, attention });
    const ids = sequences[0] as number[];
    const first = await decoder.step({ ids: [ids.slice(0, 4)], mask: [[1, 1, 1, 1]] });
    const second = await decoder.step({ ids: [ids.slice(4)], mask: [ids.map(() => 1)], cache: first.cache });
    for (let i = 4; i < ids.length; i++)
      t.true(difference(second.logits.at(0, i - 4), expected[0]?.[i] as Float64Array) < 3e-6);
  }
});

test('several tokens on top of a padded batch’s cache equal the whole sequences', async (t) => {
  const { decoder, sequences, expected } = await exported({ fields: {}, attention: 'onnx' });
  const prompts = sequences.map((ids) => ids.slice(0, ids.length - 3));
  const longest = Math.max(...prompts.map((ids) => ids.length));
  const padding = prompts.map((ids) => new Array<number>(longest - ids.length).fill(0));
  const mask = prompts.map((ids, row) => [...(padding[row] as number[]), ...ids.map(() => 1)]);
  const first = await decoder.step({ ids: prompts.map((ids, row) => [...(padding[row] as number[]), ...ids]), mask });
  const longer = mask.map((row) => [...row, 1, 1, 1]);
  const { logits } = await decoder.step({
    ids: sequences.map((ids) => ids.slice(-3)),
    mask: longer,
    cache: first.cache,
  });
  sequences.forEach((ids, row) => {
    for (let i = 0; i < 3; i++)
      t.true(difference(logits.at(row, i), expected[row]?.[ids.length - 3 + i] as Float64Array) < 3e-6);
  });
});

test('a row that pauses, its new token masked, goes on later as if nothing had been', async (t) => {
  for (const attention of ['onnx', 'group-query'] as const) {
    const { decoder, sequences, expected } = await exported({ fields: {}, attention });
    const ids = sequences.map((all) => all.slice(0, 2));
    const mask = ids.map(() => [1, 1]);
    let { logits, cache } = await decoder.step({ ids, mask });
    const lengths = [2, 2, 2];
    for (const pausing of [0, 2, undefined]) {
      const next = sequences.map((all, row) => [row === pausing ? 1 : (all[lengths[row] as number] as number)]);
      for (const [row, kept] of mask.entries()) kept.push(row === pausing ? 0 : 1);
      ({ logits, cache } = await decoder.step({ ids: next, mask, cache }));
      for (const row of [0, 1, 2]) {
        if (row === pausing) continue;
        const reference = expected[row]?.[lengths[row] as number] as Float64Array;
        t.true(difference(logits.at(row, 0), reference) < 3e-6, `${attention}, row ${row}, token ${lengths[row]}`);
        lengths[row] = (lengths[row] as number) + 1;
      }
    }
  }
});

test('GroupQueryAttention takes a cache of full length, whose unused end is not read', async (t) => {
  const { config, decoder, sequences, expected } = await exported({ fields: {}, attention: 'group-query' });
  const ids = sequences[0] as number[];
  const first = await decoder.step({ ids: [ids.slice(0, 4)], mask: [[1, 1, 1, 1]] });
  const width = config.hiddenSize / config.heads;
  const full = Object.entries(first.cache).map(([name, tensor]): [string, Tensor] => {
    const data = new Float32Array(config.heads * 20 * width).fill(Number.NaN);
    for (let head = 0; head < config.heads; head++) {
      data.set((tensor.data as Float32Array).subarray(head * 4 * width, (head + 1) * 4 * width), head * 20 * width);
    }
    return [name, new Tensor('float32', data, [1, config.heads, 20, width])];
  });
  let cache: Cache = Object.fromEntries(full);
  for (let i = 4; i < ids.length; i++) {
    const step = await decoder.step({ ids: [[ids[i] as number]], mask: [new Array(i + 1).fill(1)], cache });
    t.true(difference(step.logits.at(0, 0), expected[0]?.[i] as Float64Array) < 3e-6);
    t.is(step.cache['past_key_values.0.key']?.dims[2], 20);
    cache = step.cache;
  }
});

test('a value beyond float16 is an error that names it, not an infinity', async (t) => {
  const json = tinyConfig();
  const parameters = randomParameters(parseOptConfig(json), 'float32');
  (parameters.get('layers.1.fc2.weight')?.data as Float64Array)[3] = 70000;
  const folder = await writeCheckpoint(json, parameters, 'float32');
  await t.throwsAsync(exportOpt(folder, { output: join(folder, 'out'), dtype: 'float16' }), {
    message: /layers\.1\.fc2\.weight holds 70000.*--dtype float32/,
  });
  await exportOpt(folder, { output: join(folder, 'out') });
  t.pass();
});

test('weights of another model are refused with both shapes', async (t) => {
  const parameters = randomParameters(parseOptConfig(tinyConfig()), 'float32');
  const folder = await writeCheckpoint(tinyConfig({ ffn_dim: 64 }), parameters, 'float32');
  await t.throwsAsync(exportOpt(folder, { output: join(folder, 'out') }), {
    message: /layers\.0\.fc1\.weight has shape \[48, 32\], expected \[64, 32\]/,
  });
  await writeFile(join(folder, 'config.json'), JSON.stringify(tinyConfig({ num_hidden_layers: 3 })));
  await t.throwsAsync(exportOpt(folder, { output: join(folder, 'out') }), { message: /lacks layers\.2\./ });
});
