import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { ModelFolderError } from '../../models/errors.js';
import { headDim, parseOptConfig, readOptConfig } from '../../models/opt/config.js';
import { temporaryFolder, tinyConfig } from './support/checkpoints.js';

test('fields left out take the defaults of transformers', (t) => {
  const config = parseOptConfig({ model_type: 'opt', torch_dtype: 'float16', prefix: '</s>' });
  t.like(config, {
    vocabSize: 50272,
    hiddenSize: 768,
    layers: 12,
    heads: 12,
    ffnDim: 3072,
    maxPositions: 2048,
    embedDim: 768,
    preNorm: true,
    finalNorm: true,
    bias: true,
    affineNorm: true,
    activation: 'relu',
    tied: true,
    eosTokenId: 2,
  });
  t.is(headDim(config), 64);
  t.is(parseOptConfig({ hidden_size: 96 }).embedDim, 96);
  t.is(parseOptConfig({ word_embed_proj_dim: null, eos_token_id: null }).eosTokenId, 2);
});

test('post-norm models have no final norm', (t) => {
  t.false(parseOptConfig(tinyConfig({ do_layer_norm_before: false })).finalNorm);
  t.false(parseOptConfig(tinyConfig({ _remove_final_layer_norm: true })).finalNorm);
});

const refused: [unknown, RegExp][] = [
  [null, /expected a JSON object, found null/],
  [[], /expected a JSON object/],
  [{ model_type: 'llama' }, /model_type is "llama".*Optimum/],
  [{ hidden_size: '768' }, /hidden_size is "768", expected a whole number/],
  [{ hidden_size: 0 }, /hidden_size is 0/],
  [{ num_hidden_layers: 1e9 }, /num_hidden_layers is 1000000000/],
  [{ num_attention_heads: 7 }, /not a multiple of num_attention_heads 7/],
  [{ activation_function: 'silu' }, /activation_function is "silu", expected one of relu, gelu/],
  [{ enable_bias: 'no' }, /enable_bias is "no", expected true or false/],
  [{ eos_token_id: -1 }, /eos_token_id is -1/],
];

for (const [json, message] of refused) {
  test(`refused: ${JSON.stringify(json)}`, (t) => {
    const error = t.throws(() => parseOptConfig(json), { instanceOf: ModelFolderError, message });
    t.is(error?.code, 'ERR_FLASHLLM_CONFIG');
  });
}

test('a missing or broken config.json names the file', async (t) => {
  const folder = await temporaryFolder();
  await t.throwsAsync(readOptConfig(folder), { message: /cannot read .*config\.json/ });
  await writeFile(join(folder, 'config.json'), '{');
  await t.throwsAsync(readOptConfig(folder), { message: /config\.json is not JSON/ });
});
