import type { LinearName, LinearPlaces, NormName, TensorPlace } from '../../provider/native-pruning.js';
import { type Checkpoint, type CheckpointTensor, isFloatType } from '../checkpoint/types.js';
import { ModelFolderError } from '../errors.js';
import { canonicalName } from '../opt/checkpoint-weights.js';
import type { OptConfig } from '../opt/config.js';
import { layerLinears } from './options.js';

const norms: readonly NormName[] = ['self_attn_layer_norm', 'final_layer_norm'];

/** The parameters of an OPT checkpoint, by their names without `model.decoder.`, checked against the configuration. */
export class LayerFiles {
  private readonly byName = new Map<string, CheckpointTensor>();

  constructor(
    private readonly config: OptConfig,
    checkpoint: Checkpoint,
  ) {
    for (const tensor of checkpoint.tensors.values()) this.byName.set(canonicalName(tensor.name), tensor);
  }

  /** Tensors of a layer, as the checkpoint has them. */
  ofLayer(layer: number): CheckpointTensor[] {
    return [...this.byName].filter(([name]) => name.startsWith(`layers.${layer}.`)).map(([, tensor]) => tensor);
  }

  /** Tensors of no layer. A tied model's lm_head, which torch saves all the same, is left out: it is the embedding again. */
  outside(): CheckpointTensor[] {
    return [...this.byName]
      .filter(([name]) => !/^layers\.\d+\./.test(name) && !(this.config.tied && name === 'lm_head.weight'))
      .map(([, tensor]) => tensor);
  }

  /** The linears of a layer. */
  linears(layer: number): Record<LinearName, LinearPlaces> {
    const { hiddenSize: d, ffnDim: f, bias } = this.config;
    return Object.fromEntries(
      layerLinears.map((name) => {
        const [out, input] = name === 'fc1' ? [f, d] : name === 'fc2' ? [d, f] : [d, d];
        const at = `layers.${layer}.${name}`;
        return [
          name,
          { weight: this.place(`${at}.weight`, [out, input]), ...(bias && { bias: this.place(`${at}.bias`, [out]) }) },
        ];
      }),
    ) as Record<LinearName, LinearPlaces>;
  }

  /** The layer norms of a layer. */
  norms(layer: number): Record<NormName, { scale?: TensorPlace; shift?: TensorPlace }> {
    const length = [this.config.hiddenSize];
    return Object.fromEntries(
      norms.map((name) => {
        const at = `layers.${layer}.${name}`;
        if (!this.config.affineNorm) return [name, {}];
        return [name, { scale: this.place(`${at}.weight`, length), shift: this.place(`${at}.bias`, length) }];
      }),
    ) as Record<NormName, { scale?: TensorPlace; shift?: TensorPlace }>;
  }

  /** Tables of the embedding. */
  embedding(): { tokenTable: TensorPlace; embedSize: number; positionTable: TensorPlace; projectIn?: TensorPlace } {
    const { vocabSize, embedDim, hiddenSize, maxPositions } = this.config;
    return {
      tokenTable: this.place('embed_tokens.weight', [vocabSize, embedDim]),
      embedSize: embedDim,
      positionTable: this.place('embed_positions.weight', [maxPositions + 2, hiddenSize]),
      ...(embedDim !== hiddenSize && { projectIn: this.place('project_in.weight', [hiddenSize, embedDim]) }),
    };
  }

  /** Where a tensor of the checkpoint is. @throws ModelFolderError `TENSOR` if it is missing or has another shape or type. */
  place(name: string, shape: readonly number[]): TensorPlace {
    const tensor = this.byName.get(name);
    const expected = `[${shape.join(', ')}] from config.json`;
    if (!tensor) throw new ModelFolderError('TENSOR', `the checkpoint lacks ${name}, expected ${expected}`);
    if (tensor.shape.join() !== shape.join())
      throw new ModelFolderError(
        'TENSOR',
        `tensor ${tensor.name} has shape [${tensor.shape.join(', ')}], expected ${expected}`,
      );
    if (!isFloatType(tensor.type))
      throw new ModelFolderError(
        'TENSOR',
        `tensor ${tensor.name} is stored as ${tensor.type}, expected float32, float16 or bfloat16: convert the checkpoint first`,
      );
    return placeOf(tensor);
  }
}

/** A float tensor as the addon takes it. */
export function placeOf(tensor: CheckpointTensor): TensorPlace {
  return {
    path: tensor.path,
    offset: tensor.offset,
    type: tensor.type as TensorPlace['type'],
    elements: tensor.shape.reduce((a, b) => a * b, 1),
  };
}
