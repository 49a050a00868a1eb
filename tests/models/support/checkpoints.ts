import { rmSync } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { floatBitsToHalf, halfToNumber } from '../../../models/checkpoint/convert.js';
import type { FloatType } from '../../../models/checkpoint/types.js';
import type { OptConfig } from '../../../models/opt/config.js';
import type { Parameters } from './reference-opt.js';

const folders: string[] = [];
process.once('exit', () => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

/** A fresh folder under the system's temporary one, removed when the tests end. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'flashllm-test-'));
  folders.push(folder);
  return folder;
}

/** A small generator of reproducible uniform numbers in [0, 1) (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Random parameters of a model, every number exact in `type`. */
export function randomParameters(config: OptConfig, type: FloatType, seed = 1): Parameters {
  const random = randomNumbers(seed);
  const parameters = new Map<string, { shape: readonly number[]; data: Float64Array }>();
  for (const [name, shape] of parameterShapes(config)) {
    const count = shape.reduce((a, b) => a * b, 1);
    const centre = name.endsWith('norm.weight') ? 1 : 0;
    parameters.set(name, {
      shape,
      data: Float64Array.from({ length: count }, () => roundTo(type, centre + (random() - 0.5) * 0.6)),
    });
  }
  return parameters;
}

function parameterShapes(config: OptConfig): [string, number[]][] {
  const { hiddenSize: h, ffnDim: f, embedDim: e } = config;
  const linear = (name: string, out: number, inp: number, bias = config.bias): [string, number[]][] => [
    [`${name}.weight`, [out, inp]],
    ...(bias ? ([[`${name}.bias`, [out]]] as [string, number[]][]) : []),
  ];
  const norm = (name: string): [string, number[]][] =>
    config.affineNorm
      ? [
          [`${name}.weight`, [h]],
          [`${name}.bias`, [h]],
        ]
      : [];
  const layer = (i: number): [string, number[]][] => [
    ...norm(`layers.${i}.self_attn_layer_norm`),
    ...['q', 'k', 'v'].flatMap((p) => linear(`layers.${i}.self_attn.${p}_proj`, h, h)),
    ...linear(`layers.${i}.self_attn.out_proj`, h, h),
    ...norm(`layers.${i}.final_layer_norm`),
    ...linear(`layers.${i}.fc1`, f, h),
    ...linear(`layers.${i}.fc2`, h, f),
  ];
  return [
    ['embed_tokens.weight', [config.vocabSize, e]],
    ['embed_positions.weight', [config.maxPositions + 2, h]],
    ...(e === h ? [] : [...linear('project_in', h, e, false), ...linear('project_out', e, h, false)]),
    ...Array.from({ length: config.layers }, (_, i) => layer(i)).flat(),
    ...(config.finalNorm ? norm('final_layer_norm') : []),
    ...(config.tied ? [] : ([['lm_head.weight', [config.vocabSize, e]]] as [string, number[]][])),
  ];
}

/** The nearest number that `type` holds. */
export function roundTo(type: FloatType, value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] as number;
  if (type === 'float32') return Math.fround(value);
  if (type === 'float16') return halfToNumber(floatBitsToHalf(bits));
  return new Float32Array(Uint32Array.of(bits & 0xffff0000).buffer)[0] as number;
}

/** Little-endian bytes of numbers that `type` holds exactly. */
export function encode(type: FloatType, values: Float64Array): Buffer {
  const bits = new Uint32Array(Float32Array.from(values).buffer);
  if (type === 'float32') return Buffer.from(bits.buffer);
  return Buffer.from(Uint16Array.from(bits, (b) => (type === 'float16' ? floatBitsToHalf(b) : b >>> 16)).buffer);
}

const safetensorsTypes = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const;

/** A safetensors file of parameters, each name put through `rename`. */
export function safetensors(parameters: Parameters, type: FloatType, rename: (name: string) => string): Buffer {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  const data: Buffer[] = [];
  let at = 0;
  for (const [name, { shape, data: values }] of parameters) {
    const bytes = encode(type, values);
    header[rename(name)] = { dtype: safetensorsTypes[type], shape, data_offsets: [at, at + bytes.length] };
    data.push(bytes);
    at += bytes.length;
  }
  return safetensorsFile(header, Buffer.concat(data));
}

/** A safetensors file with any header, to be wrong on purpose. */
export function safetensorsFile(header: unknown, data: Buffer): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, data]);
}

/** The prefix that transformers gives every parameter but lm_head. */
export function huggingFaceName(name: string): string {
  return name.startsWith('lm_head.') ? name : `model.decoder.${name}`;
}

/** Writes config.json and model.safetensors into a new folder. */
export async function writeCheckpoint(configJson: unknown, parameters: Parameters, type: FloatType): Promise<string> {
  const folder = await temporaryFolder();
  await writeFile(join(folder, 'config.json'), JSON.stringify(configJson));
  await writeFile(join(folder, 'model.safetensors'), safetensors(parameters, type, huggingFaceName));
  return folder;
}

/** config.json of a tiny OPT; fields given replace its own. */
export function tinyConfig(fields: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    model_type: 'opt',
    vocab_size: 67,
    hidden_size: 32,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    ffn_dim: 48,
    max_position_embeddings: 40,
    word_embed_proj_dim: (fields.hidden_size as number | undefined) ?? 32,
    do_layer_norm_before: true,
    ...fields,
  };
}
