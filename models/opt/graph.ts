import { type ModelProto, onnx, type TensorProto } from '../../graph-passes/onnx/proto.js';
import { setPayload, type TensorSource } from '../../graph-passes/onnx/tensor.js';
import type { FloatType } from '../checkpoint/types.js';
import { headDim, type OptConfig } from './config.js';
import { type Dim, GraphBuilder, onnxType } from './graph-builder.js';
import {
  buildContext,
  type Context,
  dimNames,
  IN_PLACE_LENGTH,
  type OptAttention,
  type OptDtype,
  type OptGraphOptions,
} from './graph-context.js';

/** A tensor of the model being built: how it is stored, and what makes its bytes. */
export interface OptTensor {
  readonly type: FloatType;
  readonly source: TensorSource;
}

/**
 * Where the graph gets its weights. Names are those of a Hugging Face checkpoint without the `model.decoder.` before
 * them.
 */
export interface OptWeights {
  /**
   * A [rows, columns] matrix made of the named ones, each of equal share, one above the other; kept in the type that
   * it comes in where the graph can take it.
   */
  matrix(names: readonly string[], rows: number, columns: number): OptTensor;
  /**
   * A vector made of the named ones, each of equal share, one after the other; always in the type the graph computes
   * in.
   */
  vector(names: readonly string[], length: number): OptTensor;
}

const { batch, sequence, past, total, tokens } = dimNames;

/** The op whose cache grows in place, where it can be had: GroupQueryAttention wants heads of a multiple of 8 elements. */
export function defaultAttention(config: OptConfig): OptAttention {
  return headDim(config) % 8 === 0 ? 'group-query' : 'onnx';
}

/**
 * Builds the ONNX decoder of an OPT model: Optimum's inputs and outputs, weights as payloads that saving streams.
 * docs/opt-graph.md describes it and why it is so.
 */
export function buildOptModel(config: OptConfig, weights: OptWeights, options: OptGraphOptions): ModelProto {
  return new OptGraph(config, weights, options).build();
}

class OptGraph {
  private readonly graph: GraphBuilder;
  private readonly type: OptDtype;

  constructor(
    private readonly config: OptConfig,
    private readonly weights: OptWeights,
    private readonly options: OptGraphOptions,
  ) {
    this.type = options.dtype;
    // Attention came with opset 23 (IR 11); the rest needs LayerNormalization of opset 17 (IR 8).
    this.graph = new GraphBuilder('opt', options.attention === 'onnx' ? { opset: 23, ir: 11 } : { opset: 17, ir: 8 });
  }

  build(): ModelProto {
    const { graph, config, type } = this;
    graph.input('input_ids', 'int64', [batch, sequence]);
    graph.input('attention_mask', 'int64', [batch, total]);
    graph.input('position_ids', 'int64', [batch, sequence]);
    graph.output('logits', type, [batch, sequence, config.vocabSize]);
    const present = this.options.attention === 'group-query' ? IN_PLACE_LENGTH : total;
    for (let i = 0; i < config.layers; i++) {
      for (const part of ['key', 'value']) {
        graph.input(`past_key_values.${i}.${part}`, type, [batch, config.heads, past, headDim(config)]);
        graph.output(`present.${i}.${part}`, type, [batch, config.heads, present, headDim(config)]);
      }
    }
    // For GPUs: a greedy step copies one token from the device, not the whole row of logits.
    if (type === 'float16') graph.output('likeliest', 'int64', [batch, sequence]);
    const context = buildContext(graph, this.options);
    let hidden = this.embed();
    for (let i = 0; i < config.layers; i++) hidden = this.layer(i, hidden, context);
    this.head(hidden, context);
    return graph.model();
  }

  /** Token and position embeddings, added: [tokens, hidden]. */
  private embed(): string {
    const { graph, config, type } = this;
    const width = config.hiddenSize;
    const table = this.matrix(['embed_tokens.weight'], config.vocabSize, config.embedDim);
    let hidden = this.lookUp('embed_tokens', table, 'input_ids', config.embedDim);
    if (config.embedDim !== width) hidden = this.linear('project_in', hidden, config.embedDim, width, { bias: false });
    // OPT's table begins with two rows that no token uses.
    const positions = this.matrix(['embed_positions.weight'], config.maxPositions + 2, width);
    const rows = graph.node('Add', ['position_ids', graph.int64s('position_offset', [2])], {
      name: '/model/decoder/position_rows',
      type: 'int64',
      dims: [batch, sequence],
    });
    const position = this.lookUp('embed_positions', positions, rows, width);
    return graph.node('Add', [hidden, position], { name: '/model/decoder/embed', type, dims: [tokens, width] });
  }

  private layer(index: number, hidden: string, context: Context): string {
    const { config } = this;
    const at = `layers.${index}`;
    const normed = config.preNorm ? this.norm(`${at}.self_attn_layer_norm`, hidden) : hidden;
    const attended = this.add(`${at}/residual_1`, hidden, this.attention(index, normed, context));
    const middle = config.preNorm ? attended : this.norm(`${at}.self_attn_layer_norm`, attended);
    const expanded = this.linear(
      `${at}.fc1`,
      config.preNorm ? this.norm(`${at}.final_layer_norm`, middle) : middle,
      config.hiddenSize,
      config.ffnDim,
    );
    const output = this.add(
      `${at}/residual_2`,
      middle,
      this.linear(`${at}.fc2`, this.activate(at, expanded), config.ffnDim, config.hiddenSize),
    );
    return config.preNorm ? output : this.norm(`${at}.final_layer_norm`, output);
  }

  private attention(index: number, hidden: string, context: Context): string {
    const { graph, config, type } = this;
    const at = `layers.${index}.self_attn`;
    const width = config.hiddenSize;
    const parts = ['q_proj', 'k_proj', 'v_proj'].map((part) => `${at}.${part}`);
    const flat = this.linear(`${at}.qkv_proj`, hidden, width, 3 * width, { parts });
    const packed = graph.node('Reshape', [flat, context.split], {
      name: `/model/decoder/${slashed(at)}/packed`,
      type,
      dims: [batch, sequence, 3 * width],
    });
    const name = `/model/decoder/${slashed(at)}/attention`;
    const output = `${name}_output`;
    const pasts = [`past_key_values.${index}.key`, `past_key_values.${index}.value`];
    const outputs = [output, `present.${index}.key`, `present.${index}.value`];
    const common = { scale: { float: headDim(config) ** -0.5 }, kv_num_heads: config.heads };
    if (this.options.attention === 'group-query') {
      const inputs = [packed, '', '', ...pasts, context.lengths, context.total, '', '', '', context.bias];
      graph.addNode(
        'GroupQueryAttention',
        inputs,
        outputs,
        name,
        { num_heads: config.heads, ...common, do_rotary: 0 },
        'com.microsoft',
      );
    } else {
      const split = ['q', 'k', 'v'].map((part) => `${name}_${part}`);
      graph.addNode('Split', [packed], split, `${name}_split`, { axis: 2, num_outputs: 3 });
      graph.addNode('Attention', [...split, context.bias, ...pasts], outputs, name, {
        q_num_heads: config.heads,
        ...common,
        is_causal: 1,
      });
    }
    graph.valueInfo(output, type, [batch, sequence, width]);
    const joined = graph.node('Reshape', [output, graph.int64s(`rows_of_${width}`, [-1, width])], {
      name: `/model/decoder/${slashed(at)}/joined`,
      type,
      dims: [tokens, width],
    });
    return this.linear(`${at}.out_proj`, joined, width, width);
  }

  private head(hidden: string, context: Context): void {
    const { graph, config, type } = this;
    const normed = config.finalNorm ? this.norm('final_layer_norm', hidden) : hidden;
    const narrow =
      config.embedDim === config.hiddenSize
        ? normed
        : this.linear('project_out', normed, config.hiddenSize, config.embedDim, { bias: false });
    const name = config.tied ? 'embed_tokens.weight' : 'lm_head.weight';
    const table = this.computed(
      this.matrix([name], config.vocabSize, config.embedDim),
      config.vocabSize,
      config.embedDim,
    );
    const flat = graph.node('Gemm', [narrow, table], {
      name: '/lm_head/Gemm',
      type,
      dims: [tokens, config.vocabSize],
      attributes: { transB: 1 },
    });
    graph.addNode('Reshape', [flat, context.split], ['logits'], '/lm_head/logits');
    if (type === 'float16')
      graph.addNode('ArgMax', ['logits'], ['likeliest'], '/lm_head/likeliest', { axis: -1, keepdims: 0 });
  }

  private activate(at: string, hidden: string): string {
    const { graph, config, type } = this;
    const gelu = config.activation === 'gelu';
    const options = { name: `/model/decoder/${at}/activation`, type, dims: [tokens, config.ffnDim] };
    return graph.node(gelu ? 'Gelu' : 'Relu', [hidden], gelu ? { ...options, domain: 'com.microsoft' } : options);
  }

  private add(at: string, a: string, b: string): string {
    return this.graph.node('Add', [a, b], {
      name: `/model/decoder/${at}/Add`,
      type: this.type,
      dims: [tokens, this.config.hiddenSize],
    });
  }

  private norm(at: string, hidden: string): string {
    const { graph, config, type } = this;
    const width = config.hiddenSize;
    const scale = config.affineNorm
      ? this.vector([`${at}.weight`], width)
      : graph.floats('unit_scale', type, [width], new Array(width).fill(1));
    const shift = config.affineNorm ? [this.vector([`${at}.bias`], width)] : [];
    const options = {
      name: `/model/decoder/${slashed(at)}/LayerNormalization`,
      type,
      dims: [tokens, width],
      attributes: { axis: -1, epsilon: { float: 1e-5 } },
    };
    return graph.node('LayerNormalization', [hidden, scale, ...shift], options);
  }

  /**
   * hidden · Wᵀ + b, W [out, in] as in the checkpoint; `parts` are the linears of the checkpoint that make this one,
   * one above the other.
   */
  private linear(
    at: string,
    hidden: string,
    inFeatures: number,
    outFeatures: number,
    { bias = this.config.bias, parts = [at] }: { bias?: boolean; parts?: readonly string[] } = {},
  ): string {
    const weight = this.computed(
      this.matrix(
        parts.map((part) => `${part}.weight`),
        outFeatures,
        inFeatures,
        `${at}.weight`,
      ),
      outFeatures,
      inFeatures,
    );
    const biases = bias
      ? [
          this.vector(
            parts.map((part) => `${part}.bias`),
            outFeatures,
            `${at}.bias`,
          ),
        ]
      : [];
    const options = {
      name: `/model/decoder/${slashed(at)}/Gemm`,
      type: this.type,
      dims: [tokens, outFeatures],
      attributes: { transB: 1 },
    };
    return this.graph.node('Gemm', [hidden, weight, ...biases], options);
  }

  /**
   * [tokens, width] rows of a table, in the type computed in. The table itself is not cast: that would keep a second
   * copy of it in memory.
   */
  private lookUp(at: string, table: Stored, ids: string, width: number): string {
    const { graph } = this;
    const name = `/model/decoder/${at}`;
    const rows = graph.node('Gather', [table.name, ids], {
      name: `${name}/Gather`,
      type: table.type,
      dims: [batch, sequence, width],
      attributes: { axis: 0 },
    });
    const flat = graph.node('Reshape', [rows, graph.int64s(`rows_of_${width}`, [-1, width])], {
      name: `${name}/Reshape`,
      type: table.type,
      dims: [tokens, width],
    });
    return this.cast(flat, table.type, [tokens, width]);
  }

  /** The value of a stored matrix in the type computed in; ONNX Runtime folds the cast when it loads the model. */
  private computed(stored: Stored, rows: number, columns: number): string {
    return this.cast(stored.name, stored.type, [rows, columns]);
  }

  private cast(value: string, from: FloatType, dims: Dim[]): string {
    if (from === this.type) return value;
    const name = `${value}/${this.type}`;
    return this.graph.node('Cast', [value], { name, type: this.type, dims, attributes: { to: onnxType(this.type) } });
  }

  private matrix(names: readonly string[], rows: number, columns: number, as = names[0] as string): Stored {
    const name = fullName(as);
    const known = this.graph.stored(name);
    if (known) return { name, type: known };
    const { type, source } = this.weights.matrix(names, rows, columns);
    return { name: this.graph.initializer(stream(name, type, [rows, columns], source), type), type };
  }

  private vector(names: readonly string[], length: number, as = names[0] as string): string {
    const { type, source } = this.weights.vector(names, length);
    return this.graph.initializer(stream(fullName(as), type, [length], source), type);
  }
}

interface Stored {
  readonly name: string;
  readonly type: FloatType;
}

function stream(name: string, type: FloatType, dims: number[], source: TensorSource): TensorProto {
  const tensor = onnx.TensorProto.create({ name, dataType: onnxType(type), dims });
  setPayload(tensor, { kind: 'source', source });
  return tensor;
}

/** `lm_head.weight` stands beside the decoder, everything else in it. */
function fullName(name: string): string {
  return name === 'lm_head.weight' ? name : `model.decoder.${name}`;
}

/** Module path as exporters write it in node names: `layers.0.fc1` → `layers.0/fc1`. */
function slashed(path: string): string {
  return path.replace(/^(layers\.\d+)\./, '$1/').replace('self_attn.', 'self_attn/');
}
