import { join } from 'node:path';
import { describe } from '../../provider/wording.js';
import { ModelFolderError } from '../errors.js';
import { readConfigJson } from '../model-folder.js';

/** The part of an OPT model's config.json that decides its graph. */
export interface OptConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly ffnDim: number;
  /** Longest sequence; the position table has two rows more. */
  readonly maxPositions: number;
  /**
   * Width of the token embedding; project_in and project_out bridge it to hiddenSize where the two differ (OPT-350M).
   */
  readonly embedDim: number;
  /** Layer norm before each block (true), or after it (OPT-350M). */
  readonly preNorm: boolean;
  /** A last layer norm before the head. Post-norm models have none. */
  readonly finalNorm: boolean;
  /** The linears of the layers have biases. */
  readonly bias: boolean;
  /** Layer norms have a learnt scale and shift. */
  readonly affineNorm: boolean;
  readonly activation: 'relu' | 'gelu';
  /** lm_head is the token embedding. */
  readonly tied: boolean;
  readonly bosTokenId: number;
  readonly eosTokenId: number;
  readonly padTokenId: number;
}

/** Elements of one attention head. */
export function headDim(config: OptConfig): number {
  return config.hiddenSize / config.heads;
}

/**
 * Checks and reads the content of an OPT config.json; fields left out take Hugging Face's defaults.
 *
 * @param json what JSON.parse returned for the file.
 * @param source names the file in errors.
 * @throws ModelFolderError `CONFIG` if a field has the wrong type or range, or asks for something this exporter does
 * not build.
 */
export function parseOptConfig(json: unknown, source = 'config.json'): OptConfig {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new ModelFolderError('CONFIG', `${source}: expected a JSON object, found ${describe(json)}`);
  }
  const field = new Fields(json as Record<string, unknown>, source);
  const type = field.text('model_type', 'opt');
  if (type !== 'opt') {
    throw new ModelFolderError(
      'CONFIG',
      `${source}: model_type is "${type}", but only "opt" can be exported; export other models with Optimum and run 'flashllm rewrite' on the result`,
    );
  }
  const hiddenSize = field.size('hidden_size', 768);
  const preNorm = field.flag('do_layer_norm_before', true);
  const config: OptConfig = {
    vocabSize: field.size('vocab_size', 50272),
    hiddenSize,
    layers: field.size('num_hidden_layers', 12, 1024),
    heads: field.size('num_attention_heads', 12),
    ffnDim: field.size('ffn_dim', 3072),
    maxPositions: field.size('max_position_embeddings', 2048),
    embedDim: field.size('word_embed_proj_dim', hiddenSize),
    preNorm,
    finalNorm: preNorm && !field.flag('_remove_final_layer_norm', false),
    bias: field.flag('enable_bias', true),
    affineNorm: field.flag('layer_norm_elementwise_affine', true),
    activation: field.choice('activation_function', ['relu', 'gelu'] as const),
    tied: field.flag('tie_word_embeddings', true),
    bosTokenId: field.token('bos_token_id', 2),
    eosTokenId: field.token('eos_token_id', 2),
    padTokenId: field.token('pad_token_id', 1),
  };
  if (config.hiddenSize % config.heads !== 0) {
    throw new ModelFolderError(
      'CONFIG',
      `${source}: hidden_size ${config.hiddenSize} is not a multiple of num_attention_heads ${config.heads}`,
    );
  }
  return config;
}

/** Reads and checks `config.json` of a model folder. @throws ModelFolderError `CONFIG`. */
export async function readOptConfig(folder: string): Promise<OptConfig> {
  const path = join(folder, 'config.json');
  return parseOptConfig(await readConfigJson(path), path);
}

/** Typed access to config.json with an error that names the field, what it held and what it may hold. */
class Fields {
  constructor(
    private readonly json: Record<string, unknown>,
    private readonly source: string,
  ) {}

  private get(name: string): unknown {
    return Object.hasOwn(this.json, name) ? (this.json[name] ?? undefined) : undefined;
  }

  private fail(name: string, expected: string): never {
    throw new ModelFolderError(
      'CONFIG',
      `${this.source}: ${name} is ${describe(this.get(name))}, expected ${expected}`,
    );
  }

  size(name: string, fallback: number, limit = 2 ** 24): number {
    const value = this.get(name) ?? fallback;
    if (!Number.isInteger(value) || (value as number) < 1 || (value as number) > limit)
      this.fail(name, `a whole number from 1 to ${limit}`);
    return value as number;
  }

  token(name: string, fallback: number): number {
    const value = this.get(name) ?? fallback;
    if (!Number.isInteger(value) || (value as number) < 0 || (value as number) > 2 ** 31 - 1)
      this.fail(name, 'a token id');
    return value as number;
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.get(name) ?? fallback;
    if (typeof value !== 'boolean') this.fail(name, 'true or false');
    return value;
  }

  text(name: string, fallback: string): string {
    const value = this.get(name) ?? fallback;
    if (typeof value !== 'string') this.fail(name, 'a string');
    return value;
  }

  choice<T extends string>(name: string, choices: readonly [T, ...T[]]): T {
    const value = this.get(name) ?? choices[0];
    const found = choices.find((choice) => choice === value);
    if (found === undefined) this.fail(name, `one of ${choices.join(', ')}`);
    return found;
  }
}
