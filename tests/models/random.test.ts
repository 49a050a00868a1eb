import { readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { InferenceSession } from 'onnxruntime-node';
import { loadModel } from '../../graph-passes/onnx/load.js';
import type { TensorProto } from '../../graph-passes/onnx/proto.js';
import { dimsOf, tensorBytes } from '../../graph-passes/onnx/tensor.js';
import { Decoder } from '../../models/decoder.js';
import { ModelFolderError } from '../../models/errors.js';
import { exportRandomOpt } from '../../models/opt/export.js';
import { optConfig, optConfigJson, optSizes } from '../../models/opt/sizes.js';
import { temporaryFolder, tinyConfig } from './support/checkpoints.js';

const small = tinyConfig({
  hidden_size: 256,
  word_embed_proj_dim: 256,
  ffn_dim: 1024,
  num_hidden_layers: 3,
  vocab_size: 512,
  max_position_embeddings: 64,
});

async function made(sparsity: number, seed: number, shareLayers: boolean) {
  const output = await temporaryFolder();
  const { modelPath, dataBytes } = await exportRandomOpt(small, { sparsity, seed, shareLayers }, { output });
  const { proto } = loadModel(modelPath);
  const tensors = new Map(
    (proto.graph?.initializer ?? []).map((tensor) => [tensor.name as string, tensor as TensorProto]),
  );
  const bits = (name: string) => {
    const bytes = Buffer.from(tensorBytes(tensors.get(name) as TensorProto));
    return new Uint16Array(Uint8Array.from(bytes).buffer);
  };
  return { output, modelPath, dataBytes, tensors, bits };
}

const zeros = (values: Uint16Array) =>
  values.reduce((count, value) => count + Number((value & 0x7fff) === 0), 0) / values.length;

test('the linears of the layers have the sparsity asked for, everything else is dense', async (t) => {
  const { output, tensors, bits } = await made(0.8, 1, false);
  for (const [name, tensor] of tensors) {
    if (!name.endsWith('.weight') || dimsOf(tensor).length !== 2) continue;
    const expected = name.includes('layers.') ? 0.8 : 0;
    t.true(Math.abs(zeros(bits(name)) - expected) < 0.005, `${name}: ${zeros(bits(name))}`);
  }
  t.notDeepEqual(
    bits('model.decoder.layers.0.fc1.weight').slice(0, 64),
    bits('model.decoder.layers.1.fc1.weight').slice(0, 64),
  );
  await rm(output, { recursive: true });
});

test('the same seed makes the same model, another one another', async (t) => {
  const [a, b, c] = await Promise.all([made(0.5, 7, false), made(0.5, 7, false), made(0.5, 8, false)]);
  const data = await Promise.all([a, b, c].map(({ modelPath }) => readFile(`${modelPath}_data`)));
  t.true(data[0]?.equals(data[1] as Buffer));
  t.false(data[0]?.equals(data[2] as Buffer));
});

test('shared layers are distinct tensors with the bytes of one', async (t) => {
  const [shared, whole] = await Promise.all([made(0.7, 3, true), made(0.7, 3, false)]);
  const layerBytes = 2 * (4 * 256 * 256 + 2 * 256 * 1024);
  t.true(whole.dataBytes - shared.dataBytes >= 2 * layerBytes);
  t.is((await stat(`${shared.modelPath}_data`)).size, shared.dataBytes);
  t.deepEqual(shared.bits('model.decoder.layers.0.fc2.weight'), shared.bits('model.decoder.layers.2.fc2.weight'));
  t.is(shared.tensors.size, whole.tensors.size);
});

test('a random model runs and its logits are numbers', async (t) => {
  for (const dtype of ['float32', 'float16'] as const) {
    const output = await temporaryFolder();
    const { modelPath } = await exportRandomOpt(
      small,
      { sparsity: 0.8, seed: 0, shareLayers: true },
      { output, dtype },
    );
    const decoder = new Decoder(await InferenceSession.create(modelPath));
    const { logits } = await decoder.step({ ids: [[2, 5, 9]], mask: [[1, 1, 1]] });
    const values = [...logits.at(0, 2)];
    t.true(values.every(Number.isFinite));
    t.true(Math.max(...values) - Math.min(...values) > 0.1);
    t.deepEqual(JSON.parse(await readFile(join(output, 'config.json'), 'utf8')).hidden_size, 256);
  }
});

test('every released size has the parameters its name says', (t) => {
  const billions = optSizes.map((size) => {
    const { layers, hiddenSize: h, ffnDim: f, vocabSize: v, embedDim: e, maxPositions } = optConfig(size);
    return (layers * (4 * h * h + 2 * h * f) + v * e + (maxPositions + 2) * h) / 1e9;
  });
  t.deepEqual(
    billions.map((count) => Number(count.toPrecision(2))),
    [0.13, 0.33, 1.3, 2.7, 6.7, 13, 30, 66, 170],
  );
  t.false(optConfig('350m').preNorm);
  t.is(optConfigJson('66b').num_attention_heads, 72);
});

test('a sparsity of 1 is refused', async (t) => {
  await t.throwsAsync(
    exportRandomOpt(small, { sparsity: 1, seed: 0, shareLayers: false }, { output: await temporaryFolder() }),
    { instanceOf: ModelFolderError, message: /sparsity is 1/ },
  );
});
