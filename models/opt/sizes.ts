import { type OptConfig, parseOptConfig } from './config.js';

/** Layers, heads, hidden size and token-embedding width of every released OPT model (Zhang et al. 2022, table 1). */
const shapes = {
  '125m': [12, 12, 768, 768],
  '350m': [24, 16, 1024, 512],
  '1.3b': [24, 32, 2048, 2048],
  '2.7b': [32, 32, 2560, 2560],
  '6.7b': [32, 32, 4096, 4096],
  '13b': [40, 40, 5120, 5120],
  '30b': [48, 56, 7168, 7168],
  '66b': [64, 72, 9216, 9216],
  '175b': [96, 96, 12288, 12288],
} as const satisfies Record<string, readonly [number, number, number, number]>;

/** The name of a released OPT size, as in facebook/opt-NAME. */
export type OptSize = keyof typeof shapes;

/** Names of the released sizes, smallest first. */
export const optSizes = Object.keys(shapes) as readonly OptSize[];

/** config.json of a released size, as Hugging Face writes it. */
export function optConfigJson(size: OptSize): Record<string, unknown> {
  const [layers, heads, hidden, embed] = shapes[size];
  return {
    _remove_final_layer_norm: false,
    activation_function: 'relu',
    architectures: ['OPTForCausalLM'],
    bos_token_id: 2,
    do_layer_norm_before: size !== '350m',
    enable_bias: true,
    eos_token_id: 2,
    ffn_dim: 4 * hidden,
    hidden_size: hidden,
    layer_norm_elementwise_affine: true,
    max_position_embeddings: 2048,
    model_type: 'opt',
    num_attention_heads: heads,
    num_hidden_layers: layers,
    pad_token_id: 1,
    tie_word_embeddings: true,
    vocab_size: 50272,
    word_embed_proj_dim: embed,
  };
}

/** The configuration of a released size. */
export function optConfig(size: OptSize): OptConfig {
  return parseOptConfig(optConfigJson(size), `opt-${size}`);
}
