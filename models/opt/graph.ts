import { type ModelProto, onnx, type TensorProto } from '../../graph-passes/onnx/proto.js';
import { setPayload, type TensorSource } from '../../graph-passes/onnx/tensor.js';
import type { FloatType } from '../checkpoint/types.js';
import { headDim, type OptConfig } from './config.js';
import { type Dim, GraphBuilder, onnxType } from './graph-builder.js';

/** A tensor of the model being built: how it is stored, and what makes its bytes. */
export interface OptTensor {
  readonly type: FloatType;
  readonly source: TensorSource;
}

/** Where the graph gets its weights. Names are those of a Hugging Face checkpoint without the `model.decoder.` before them. */
export interface OptWeights {
  /** A [rows, columns] matrix made of the named ones, each of equal share, one above the other; kept in the type that it comes in where the graph can take it. */
  matrix(names: readonly string[], rows: number, columns: number): OptTensor;
  /** A vector made of the named ones, each of equal share, one after the other; always in the type the graph computes in. */
  vector(names: readonly string[], length: number): OptTensor;
}

/** Type that activations, the cache and logits have. */
export type OptDtype = 'float32' | 'float16';

/** Which op computes attention; docs/opt-graph.md says what each can do. */
export type OptAttention = 'group-query' | 'onnx';

/** Settings of the graph. */
export interface OptGraphOptions {
  readonly dtype: OptDtype;
  readonly attention: OptAttention;
}

const batch = 'batch_size';
const sequence = 'sequence_length';
const past = 'past_sequence_length';
const total = 'past_sequence_length + sequence_length';
const tokens = 'batch_size * sequence_length';

/** GroupQueryAttention, on CPU and GPU, takes heads of a multiple of 8 elements. */
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
    for (let i = 0; i < config.layers; i++) {
      for (const part of ['key', 'value']) {
        graph.input(`past_key_values.${i}.${part}`, type, [batch, config.heads, past, headDim(config)]);
        graph.output(`present.${i}.${part}`, type, [batch, config.heads, total, headDim(config)]);
      }
    }
    const context = this.context();
    let hidden = this.embed();
    for (let i = 0; i < config.layers; i++) hidden = this.layer(i, hidden, context);
    this.head(hidden, context);
    return graph.model();
  }

  /** Values that all layers share: shapes, lengths and the padding mask. */
  private context(): Context {
    const { graph } = this;
    const at = '/model/decoder/context';
    const shape = graph.node('Shape', [`input_ids`], { name: `${at}/shape`, type: 'int64', dims: [2] });
    const batchSize = graph.node('Shape', ['input_ids'], {
      name: `${at}/batch`,
      type: 'int64',
      dims: [1],
      attributes: { start: 0, end: 1 },
    });
    const totalSize = graph.node('Shape', ['attention_mask'], {
      name: `${at}/total`,
      type: 'int64',
      dims: [1],
      attributes: { start: 1, end: 2 },
    });
    const split = graph.node('Concat', [shape, graph.int64s('minus_one', [-1])], {
      name: `${at}/split`,
      type: 'int64',
      dims: [3],
      attributes: { axis: 0 },
    });
    const context = { split, bias: this.paddingBias(at, shape, totalSize), lengths: '', total: '' };
    if (this.options.attention === 'onnx') return context;
    const total32 = graph.node('Cast', [totalSize], {
      name: `${at}/total_int32`,
      type: 'int32',
      dims: [1],
      attributes: { to: onnx.TensorProto.DataType.INT32 },
    });
    const scalar = graph.node('Squeeze', [total32], { name: `${at}/total_scalar`, type: 'int32', dims: [] });
    const last = graph.node('Sub', [total32, graph.int32s('one_int32', [1])], {
      name: `${at}/last`,
      type: 'int32',
      dims: [1],
    });
    const lengths = graph.node('Expand', [last, batchSize], { name: `${at}/lengths`, type: 'int32', dims: [batch] });
    return { ...context, lengths, total: scalar };
  }

  /**
   * [batch, 1, sequence, total]: 0 where attention_mask is 1, else a number that no score outweighs and that, added to a score,
   * stays finite: a row of padding must not become NaN, since NaN · 0 would reach real tokens through its value.
   */
  private paddingBias(at: string, shape: string, totalSize: string): string {
    const { graph, type } = this;
    const keep = graph.node('Cast', ['attention_mask'], {
      name: `${at}/keep`,
      type: 'bool',
      dims: [batch, total],
      attributes: { to: onnx.TensorProto.DataType.BOOL },
    });
    const masked = graph.floats('masked', type, [], [type === 'float16' ? -30000 : -1e9]);
    const rows = graph.node('Where', [keep, graph.floats('kept', type, [], [0]), masked], {
      name: `${at}/bias_row`,
      type,
      dims: [batch, total],
    });
    const bias = graph.node('Unsqueeze', [rows, graph.int64s('bias_axes', [1, 2])], {
      name: `${at}/bias_4d`,
      type,
      dims: [batch, 1, 1, total],
    });
    const length = graph.node('Shape', ['input_ids'], {
      name: `${at}/sequence`,
      type: 'int64',
      dims: [1],
      attributes: { start: 1, end: 2 },
    });
    const one = graph.int64s('one', [1]);
    const batchSize = graph.node('Gather', [shape, graph.int64s('first', [0])], {
      name: `${at}/bias_batch`,
      type: 'int64',
      dims: [1],
      attributes: { axis: 0 },
    });
    const target = graph.node('Concat', [batchSize, one, length, totalSize], {
      name: `${at}/bias_shape`,
      type: 'int64',
      dims: [4],
      attributes: { axis: 0 },
    });
    return graph.node('Expand', [bias, target], { name: `${at}/bias`, type, dims: [batch, 1, sequence, total] });
  }

  /** Token and position embeddings, added: [tokens, hidden]. */
  private embed(): string {
    const { graph, config, type } = this;
    const table = this.matrix(['embed_tokens.weight'], config.vocabSize, config.embedDim);
    const ids = graph.node('Reshape', ['input_ids', graph.int64s('minus_one', [-1])], {
      name: '/model/decoder/token_ids',
      type: 'int64',
      dims: [tokens],
    });
    let hidden = this.lookUp('embed_tokens', table, ids, config.embedDim);
    if (config.embedDim !== config.hiddenSize)
      hidden = this.linear('project_in', hidden, config.embedDim, config.hiddenSize, { bias: false });
    // OPT's table begins with two rows that no token uses.
    const positions = this.matrix(['embed_positions.weight'], config.maxPositions + 2, config.hiddenSize);
    const flat = graph.node('Reshape', ['position_ids', graph.int64s('minus_one', [-1])], {
      name: '/model/decoder/positions',
      type: 'int64',
      dims: [tokens],
    });
    const rows = graph.node('Add', [flat, graph.int64s('position_offset', [2])], {
      name: '/model/decoder/position_rows',
      type: 'int64',
      dims: [tokens],
    });
    const position = this.lookUp('embed_positions', positions, rows, config.hiddenSize);
    return graph.node('Add', [hidden, position], {
      name: '/model/decoder/embed',
      type,
      dims: [tokens, config.hiddenSize],
    });
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
    const joined = graph.node('Reshape', [output, graph.int64s('rows_of_hidden', [-1, width])], {
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

  /** hidden · Wᵀ + b, W [out, in] as in the checkpoint; `parts` are the linears of the checkpoint that make this one, one above the other. */
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

  /** Rows of a table, in the type computed in. The table itself is not cast: that would keep a second copy of it in memory. */
  private lookUp(at: string, table: Stored, ids: string, width: number): string {
    const dims: Dim[] = [tokens, width];
    const rows = this.graph.node('Gather', [table.name, ids], {
      name: `/model/decoder/${at}/Gather`,
      type: table.type,
      dims,
      attributes: { axis: 0 },
    });
    return this.cast(rows, table.type, dims);
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

interface Context {
  /** int64 [3]: batch, sequence, −1: splits rows of tokens into sequences. */
  readonly split: string;
  readonly bias: string;
  /** int32 [batch]: index of each sequence's last position (GroupQueryAttention's seqlens_k). */
  readonly lengths: string;
  /** int32 scalar: positions with the past. */
  readonly total: string;
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
