import type { OptConfig } from '../../../models/opt/config.js';

/** Tensors of a model by their Hugging Face names without prefix, in row-major float64. */
export type Parameters = ReadonlyMap<string, { readonly shape: readonly number[]; readonly data: Float64Array }>;

type Rows = Float64Array[];

/**
 * OPT's forward pass after Zhang et al. 2022 and transformers' modeling_opt.py, in float64 and in the plainest way:
 * one sequence, no cache, no padding. It shares no code with the exporter.
 *
 * @returns logits, one row for each token.
 */
export function referenceLogits(config: OptConfig, parameters: Parameters, ids: readonly number[]): Rows {
  const get = (name: string): Float64Array => {
    const found = parameters.get(name);
    if (!found) throw new Error(`no parameter ${name}`);
    return found.data;
  };
  const row = (name: string, index: number, width: number) => get(name).slice(index * width, (index + 1) * width);
  const linear = (name: string, x: Rows, outputs: number, bias = config.bias): Rows =>
    x.map((v) =>
      Float64Array.from({ length: outputs }, (_, o) => {
        const weights = get(`${name}.weight`);
        let sum = bias ? (get(`${name}.bias`)[o] as number) : 0;
        for (let i = 0; i < v.length; i++) sum += (weights[o * v.length + i] as number) * (v[i] as number);
        return sum;
      }),
    );
  const norm = (name: string, x: Rows): Rows =>
    x.map((v) => {
      const mean = v.reduce((a, b) => a + b, 0) / v.length;
      const variance = v.reduce((a, b) => a + (b - mean) ** 2, 0) / v.length;
      const affine = config.affineNorm ? { w: get(`${name}.weight`), b: get(`${name}.bias`) } : undefined;
      return v.map((e, i) => ((e - mean) / Math.sqrt(variance + 1e-5)) * (affine?.w[i] ?? 1) + (affine?.b[i] ?? 0));
    });
  const add = (a: Rows, b: Rows): Rows => a.map((v, t) => v.map((e, i) => e + (b[t]?.[i] as number)));

  let x: Rows = ids.map((id) => row('embed_tokens.weight', id, config.embedDim));
  if (config.embedDim !== config.hiddenSize) x = linear('project_in', x, config.hiddenSize, false);
  x = add(
    x,
    ids.map((_, position) => row('embed_positions.weight', position + 2, config.hiddenSize)),
  );

  for (let layer = 0; layer < config.layers; layer++) {
    const at = `layers.${layer}`;
    const residual = x;
    if (config.preNorm) x = norm(`${at}.self_attn_layer_norm`, x);
    const [q, k, v] = ['q', 'k', 'v'].map((p) => linear(`${at}.self_attn.${p}_proj`, x, config.hiddenSize)) as [
      Rows,
      Rows,
      Rows,
    ];
    x = add(residual, linear(`${at}.self_attn.out_proj`, attend(q, k, v, config.heads), config.hiddenSize));
    if (!config.preNorm) x = norm(`${at}.self_attn_layer_norm`, x);
    const second = x;
    if (config.preNorm) x = norm(`${at}.final_layer_norm`, x);
    const inner = linear(`${at}.fc1`, x, config.ffnDim).map((h) =>
      h.map(config.activation === 'relu' ? (e) => Math.max(e, 0) : gelu),
    );
    x = add(second, linear(`${at}.fc2`, inner, config.hiddenSize));
    if (!config.preNorm) x = norm(`${at}.final_layer_norm`, x);
  }
  if (config.finalNorm) x = norm('final_layer_norm', x);
  if (config.embedDim !== config.hiddenSize) x = linear('project_out', x, config.embedDim, false);
  return x.map((v) =>
    Float64Array.from({ length: config.vocabSize }, (_, id) => {
      const e = row(config.tied ? 'embed_tokens.weight' : 'lm_head.weight', id, config.embedDim);
      return e.reduce((sum, value, i) => sum + value * (v[i] as number), 0);
    }),
  );
}

function attend(q: Rows, k: Rows, v: Rows, heads: number): Rows {
  const width = (q[0]?.length ?? 0) / heads;
  return q.map((query, t) => {
    const out = new Float64Array(query.length);
    for (let head = 0; head < heads; head++) {
      const at = head * width;
      const scores = Array.from({ length: t + 1 }, (_, s) => {
        let sum = 0;
        for (let i = at; i < at + width; i++) sum += (query[i] as number) * (k[s]?.[i] as number);
        return sum / Math.sqrt(width);
      });
      const largest = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - largest));
      const total = weights.reduce((a, b) => a + b, 0);
      weights.forEach((weight, s) => {
        for (let i = at; i < at + width; i++) out[i] = (out[i] as number) + (weight / total) * (v[s]?.[i] as number);
      });
    }
    return out;
  });
}

/** x · Φ(x), Φ by the error function's Maclaurin series, exact to rounding for the |x| < 5 of these tests. */
function gelu(x: number): number {
  const z = x / Math.SQRT2;
  let term = z;
  let sum = z;
  for (let n = 1; n < 120; n++) {
    term *= (-z * z) / n;
    sum += term / (2 * n + 1);
  }
  return x * 0.5 * (1 + (2 / Math.sqrt(Math.PI)) * sum);
}
