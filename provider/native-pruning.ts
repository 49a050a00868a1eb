import type { FloatType } from './native.js';

/** Elements of a tensor within a file. */
export interface TensorPlace {
  path: string;
  /** Bytes from the file's start. */
  offset: number;
  type: FloatType;
  elements: number;
}

/** What the arithmetic runs on: the host's cores, or an NVIDIA GPU by its ordinal. */
export type PruneDevice = 'cpu' | { readonly cuda: number };

/** The decoder layers that a pruner runs, and the text that it runs them on. */
export interface PrunerShape {
  hiddenSize: number;
  ffnSize: number;
  heads: number;
  preNorm: boolean;
  activation: 'relu' | 'gelu';
  sequences: number;
  /** Tokens of each sequence. */
  length: number;
  /** 0: one a core. */
  threads: number;
  device: PruneDevice;
}

/** How one linear is pruned; ops/pruning/prune.h says what each field means. */
export interface NativePruneOptions {
  method: 'magnitude' | 'wanda' | 'sparsegpt' | 'admm';
  sparsity: number;
  scope: 'layer' | 'row';
  correctBias: boolean;
  damping: number;
  blockColumns: number;
  iterations: number;
  refinement: number;
}

/** What is computed of a layer, each after the one before, and whose inputs that gives. */
export type PruneStage = 'attention-in' | 'attention-out' | 'feed-forward-in' | 'feed-forward-out';

/** The linears of a layer by their names in the checkpoint. */
export type LinearName =
  | 'self_attn.q_proj'
  | 'self_attn.k_proj'
  | 'self_attn.v_proj'
  | 'self_attn.out_proj'
  | 'fc1'
  | 'fc2';

/** The layer norms of a layer by their names in the checkpoint. */
export type NormName = 'self_attn_layer_norm' | 'final_layer_norm';

/** A linear in a file. */
export interface LinearPlaces {
  weight: TensorPlace;
  bias?: TensorPlace;
}

/** Files of activations, [sequences, length, hiddenSize] float32. */
export interface LayerActivations {
  /** What goes into the layer. */
  input: string;
  /** Made: room that is needed on the way. */
  context: string;
  /** Made: what comes out of it. */
  output: string;
}

export interface NativePruneReport {
  /** Weights that are left. */
  nnz: number;
  /** ‖X·(Ŵ − W)ᵀ + (b̂ − b)‖ / ‖X·Wᵀ‖ over the calibration tokens. */
  relativeError: number;
}

declare const prunerBrand: unique symbol;
/** Threads, and the layer that is open. */
export interface PrunerHandle {
  readonly [prunerBrand]: true;
}

type OnProgress = (millionths: number) => void;
type Signal = { readonly aborted: boolean };

/** The addon's functions for calibrated pruning. One at a time for each pruner. */
export interface NativePruning {
  /** @throws where the device cannot be had: the message says why. */
  createPruner(shape: PrunerShape): PrunerHandle;
  /** What it computes on, for people. */
  describePruner(pruner: PrunerHandle): string;
  /** Writes the embedded sequences, [sequences, length, hiddenSize] float32, to `output`. ids is [sequences, length]. */
  embedSequences(
    pruner: PrunerHandle,
    embedding: {
      ids: Int32Array;
      tokenTable: TensorPlace;
      embedSize: number;
      positionTable: TensorPlace;
      projectIn?: TensorPlace;
      output: string;
    },
  ): Promise<void>;
  /** Reads a layer. With `dense`, linears are pruned towards what the dense model gives, and that is computed along. */
  openLayer(
    pruner: PrunerHandle,
    layer: {
      linears: Record<LinearName, LinearPlaces>;
      norms: Record<NormName, { scale?: TensorPlace; shift?: TensorPlace }>;
      pruned: LayerActivations;
      dense?: LayerActivations;
    },
  ): Promise<void>;
  /** Runs the open layer to the inputs of linears, with the weights as they are now. */
  collectInputs(pruner: PrunerHandle, stage: PruneStage, onProgress?: OnProgress, signal?: Signal): Promise<void>;
  /** Prunes a linear whose inputs were collected last, and writes it into existing files. */
  pruneLinear(
    pruner: PrunerHandle,
    linear: LinearName,
    options: NativePruneOptions,
    destination: LinearPlaces,
    onProgress?: OnProgress,
    signal?: Signal,
  ): Promise<NativePruneReport & { alreadySparse: boolean }>;
  /** Writes the layer's output, all of it with the pruned weights, and closes it. */
  finishLayer(pruner: PrunerHandle, onProgress?: OnProgress, signal?: Signal): Promise<void>;

  /** Prunes one matrix in memory: weight [outFeatures, inFeatures], inputs [tokens, inFeatures], targets [tokens, outFeatures]. */
  pruneMatrix(
    linear: {
      outFeatures: number;
      inFeatures: number;
      tokens: number;
      weight: Float32Array;
      bias?: Float32Array;
      inputs: Float32Array;
      /** Outputs to come close to, instead of the linear's own. */
      targets?: Float32Array;
    },
    options: NativePruneOptions,
    device: PruneDevice,
  ): Promise<NativePruneReport & { weight: Float32Array; bias?: Float32Array }>;
}
