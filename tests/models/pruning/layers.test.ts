// The forward pass that calibration runs, on every kind of OPT, against an independent float64 implementation.
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { openCheckpoint } from '../../../models/checkpoint/index.js';
import type { FloatType } from '../../../models/checkpoint/types.js';
import { type OptConfig, parseOptConfig } from '../../../models/opt/config.js';
import { LayerFiles } from '../../../models/pruning/layer-files.js';
import { loadNative } from '../../../provider/native.js';
import type { PruneStage } from '../../../provider/native-pruning.js';
import { randomParameters, tinyConfig, writeCheckpoint } from '../support/checkpoints.js';
import { type Parameters, referenceLogits } from '../support/reference-opt.js';

const variants: Record<string, { fields: Record<string, unknown>; stored?: FloatType }> = {
  'pre-norm': { fields: {} },
  'post-norm with projections (350M)': { fields: { do_layer_norm_before: false, word_embed_proj_dim: 24 } },
  'final norm removed': { fields: { _remove_final_layer_norm: true } },
  'no biases, norms without parameters': { fields: { enable_bias: false, layer_norm_elementwise_affine: false } },
  gelu: { fields: { activation_function: 'gelu' } },
  'odd sizes': {
    fields: { hidden_size: 15, word_embed_proj_dim: 7, ffn_dim: 11, num_attention_heads: 3, vocab_size: 13 },
  },
  'stored as float16': { fields: {}, stored: 'float16' },
  'stored as bfloat16': { fields: { do_layer_norm_before: false }, stored: 'bfloat16' },
};
const stages: readonly PruneStage[] = ['attention-in', 'attention-out', 'feed-forward-in', 'feed-forward-out'];

/** Runs all layers natively without pruning anything: [sequences][tokens] of what comes out of the last. */
async function hiddenStates(folder: string, config: OptConfig, sequences: number[][], threads: number) {
  const native = loadNative();
  const files = new LayerFiles(config, await openCheckpoint(folder));
  const length = sequences[0]?.length ?? 0;
  const pruner = native.createPruner({
    hiddenSize: config.hiddenSize,
    ffnSize: config.ffnDim,
    heads: config.heads,
    preNorm: config.preNorm,
    activation: config.activation,
    sequences: sequences.length,
    length,
    threads,
    device: 'cpu',
  });
  const file = (layer: number) => join(folder, `hidden-${layer}`);
  await native.embedSequences(pruner, {
    ids: Int32Array.from(sequences.flat()),
    ...files.embedding(),
    output: file(0),
  });
  for (let layer = 0; layer < config.layers; layer++) {
    await native.openLayer(pruner, {
      linears: files.linears(layer),
      norms: files.norms(layer),
      pruned: { input: file(layer), context: join(folder, 'context'), output: file(layer + 1) },
    });
    for (const stage of stages) await native.collectInputs(pruner, stage);
    await native.finishLayer(pruner);
  }
  const bytes = await readFile(file(config.layers));
  const floats = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return sequences.map((ids, s) =>
    ids.map((_, i) => floats.slice((s * length + i) * config.hiddenSize, (s * length + i + 1) * config.hiddenSize)),
  );
}

/** Last norm, project_out and head. */
function logits(config: OptConfig, parameters: Parameters, hidden: Float32Array): Float64Array {
  const get = (name: string) => parameters.get(name)?.data as Float64Array;
  const multiply = (name: string, x: Float64Array, outputs: number) =>
    Float64Array.from({ length: outputs }, (_, o) =>
      x.reduce((sum, value, i) => sum + (get(name)[o * x.length + i] as number) * value, 0),
    );
  let x = Float64Array.from(hidden);
  if (config.finalNorm) {
    const centre = x.reduce((a, b) => a + b, 0) / x.length;
    const variance = x.reduce((a, b) => a + (b - centre) ** 2, 0) / x.length;
    x = x.map((value, i) => {
      const normed = (value - centre) / Math.sqrt(variance + 1e-5);
      if (!config.affineNorm) return normed;
      return normed * (get('final_layer_norm.weight')[i] as number) + (get('final_layer_norm.bias')[i] as number);
    });
  }
  if (config.embedDim !== config.hiddenSize) x = multiply('project_out.weight', x, config.embedDim);
  return multiply('embed_tokens.weight', x, config.vocabSize);
}

for (const [name, { fields, stored = 'float32' }] of Object.entries(variants)) {
  test(`${name}: calibration sees what the model computes`, async (t) => {
    const json = tinyConfig(fields);
    const config = parseOptConfig(json);
    const parameters = randomParameters(config, stored);
    const folder = await writeCheckpoint(json, parameters, stored);
    const sequences = [0, 1, 2].map((row) =>
      Array.from({ length: 19 }, (_, i) => (i * 5 + row * 7 + 2) % config.vocabSize),
    );
    const found = await hiddenStates(folder, config, sequences, 2);
    t.deepEqual(await hiddenStates(folder, config, sequences, 1), found);
    sequences.forEach((ids, s) => {
      const expected = referenceLogits(config, parameters, ids);
      ids.forEach((_, i) => {
        const row = logits(config, parameters, found[s]?.[i] as Float32Array);
        const scale = Math.max(1, ...row.map(Math.abs));
        const difference = Math.max(...row.map((value, k) => Math.abs(value - (expected[i]?.[k] as number)))) / scale;
        t.true(difference < 3e-6, `sequence ${s}, token ${i}: ${difference}`);
      });
    });
    await rm(folder, { recursive: true });
  });
}

test('attention over more tokens than one block of queries', async (t) => {
  const json = tinyConfig({ max_position_embeddings: 300, num_hidden_layers: 1 });
  const config = parseOptConfig(json);
  const parameters = randomParameters(config, 'float32');
  const folder = await writeCheckpoint(json, parameters, 'float32');
  const ids = Array.from({ length: 277 }, (_, i) => (i * i + 3) % config.vocabSize);
  const [found] = await hiddenStates(folder, config, [ids], 2);
  const expected = referenceLogits(config, parameters, ids);
  for (const i of [0, 127, 128, 255, 256, 276]) {
    const row = logits(config, parameters, found?.[i] as Float32Array);
    const difference = Math.max(...row.map((value, k) => Math.abs(value - (expected[i]?.[k] as number))));
    t.true(difference < 1e-5, `token ${i}: ${difference}`);
  }
  await rm(folder, { recursive: true });
});

test('a sequence longer than the positions and a token beyond the vocabulary are refused', async (t) => {
  const json = tinyConfig();
  const config = parseOptConfig(json);
  const folder = await writeCheckpoint(json, randomParameters(config, 'float32'), 'float32');
  const long = Array.from({ length: config.maxPositions + 1 }, () => 5);
  await t.throwsAsync(hiddenStates(folder, config, [long], 1), { message: /longer than the model's 40 positions/ });
  await t.throwsAsync(hiddenStates(folder, config, [[config.vocabSize]], 1), { message: /token 67 .* model's 67/ });
  await rm(folder, { recursive: true });
});
