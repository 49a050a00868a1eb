// Generated from provider/ep/options.json by scripts/generate-options.mjs.

/** Options of the flashllm execution provider: `executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu']`. */
export interface FlashLLMOptions {
  readonly name: 'flashllm';
  /** Where the provider's nodes run. auto takes an NVIDIA GPU that can be used, else the CPU. A float16 model runs whole on a GPU. Of a model that computes in float32 only SparseMatMul does, with copies around it: auto takes the CPU for those, with a warning. In other languages leave it out: the device that you append decides; for a float32 model append the CPU's. Default: 'auto'. */
  readonly device?: 'auto' | 'cpu' | 'cuda';
  /** Which GPU, counted as the CUDA runtime counts them. In other languages leave it out, too. Default: 0. */
  readonly deviceId?: number;
  /** Whether runs on a GPU are recorded as CUDA graphs and replayed. Inputs and outputs must be bound to memory that stays where it is; run option gpu_graph_id tells graphs of different shapes apart (-1: an ordinary run, which is the default in Node; prepareRun records by itself). Default: false. */
  readonly cudaGraph?: boolean;
  /**
   * How many sequences a decode step on a GPU is expected to have. Weights are laid out to be fastest with as many; any other number gives the same products within rounding, but slower, by up to a half. 0: well for 1 to 32. Sessions that expect different numbers share no weights. Default: 0.
   *
   * - 1 – 2: Sessions that never have more. A step of many zeros takes a third less time. Products of more columns, those of a prompt's tokens too, take several times as long as with 0; with jaggedMegabytes (elsewhere jagged_megabytes) instead they do not.
   * - 3 – 16: Sessions of a few sequences. Weights of many zeros (two thirds and more on an H200, four fifths and more on an H100) are laid out in another way than with 0: their steps take up to a fifth less time, and at 80 % they a sixth less memory. Prompts of 33 to some 300 tokens take up to twice as long.
   * - 17 – 64: Sessions of many sequences. Products take some tenth less time than with 0, with 33 to 64 some fifth less; prompts of 256 tokens and more are read faster too, without memory for it. Steps of few sequences take longer.
   * - 65 – 128: Sessions of as many. As with 17 to 32; all weights stay packed. Steps of few sequences take longer.
   * - 129 – 1024: Steps of so many, or prompts alone. Products of so many columns take the least time. Steps of fewer sequences take longer.
   *
   * With 1 to 64, a weight that is expected to be faster dense lies dense: of OPT-1.3B nearly all with 64, of OPT-13B the attention's output layers with 32 and half zeros, of larger models none. compactWeights (elsewhere compact_weights) keeps all packed.
   */
  readonly expectedBatch?: number;
  /** How much GPU memory may hold weights a second time, expanded to dense float16, for products of many columns (prompts, large batches): those weights need not be expanded for each of them. First come, first kept, in the model's order; 2 bytes for every element of a weight. Decoding reads the packed weights as before, except where the dense ones are expected to be faster. Default: 0. */
  readonly expandedMegabytes?: number;
  /** How much GPU memory may hold weights a second time, laid out for one and two sequences: with many zeros a step of one is a third shorter, and other steps and prompts lose nothing. About as many bytes as the packed weights. First come, first kept, in the model's order; only weights for which that is faster. With expectedBatch (elsewhere expected_batch) 1 or 2 weights have that layout alone. Default: 0. */
  readonly jaggedMegabytes?: number;
  /** Whether weights on a GPU are laid out only in the way that takes the least memory, 1.02 to 1.2 times the packed weights of large models. The way that is fastest with many zeros takes up to 1.7 times. Without the option a session's weights have that where it takes at most half of the memory that the compact way would leave free; where not, they are compact too, and the log says so. Products are the same within rounding. Default: false. */
  readonly compactWeights?: boolean;
  /** CPU instruction set of the kernels. auto takes the best one that the processor has; reference is plain C++. Default: 'auto'. */
  readonly isa?: 'auto' | 'avx512' | 'avx2' | 'neon' | 'reference';
  /** Into how many parts a product is cut for ONNX Runtime's thread pool. 0: intraOpNumThreads in Node, else one per core. Default: 0. */
  readonly threads?: number;
  /** Whether the checksum of each packed weight is verified when a session is created. Bounds are always checked. Default: true. */
  readonly verifyChecksum?: boolean;
  /** Whether the reason for each node that the provider does not claim is logged as a warning instead of at info level (on a CPU, of SparseMatMul only). Default: false. */
  readonly logUnclaimed?: boolean;
}

/** How each option is named in TypeScript (key) and in ONNX Runtime (name). */
export const optionTable: readonly {
  readonly key: Exclude<keyof FlashLLMOptions, 'name'>;
  readonly name: string;
  readonly type: 'enum' | 'int' | 'bool';
  readonly values: readonly string[];
}[] = [
  { key: 'device', name: 'device', type: 'enum', values: ['auto', 'cpu', 'cuda'] },
  { key: 'deviceId', name: 'device_id', type: 'int', values: [] },
  { key: 'cudaGraph', name: 'cuda_graph', type: 'bool', values: [] },
  { key: 'expectedBatch', name: 'expected_batch', type: 'int', values: [] },
  { key: 'expandedMegabytes', name: 'expanded_megabytes', type: 'int', values: [] },
  { key: 'jaggedMegabytes', name: 'jagged_megabytes', type: 'int', values: [] },
  { key: 'compactWeights', name: 'compact_weights', type: 'bool', values: [] },
  { key: 'isa', name: 'isa', type: 'enum', values: ['auto', 'avx512', 'avx2', 'neon', 'reference'] },
  { key: 'threads', name: 'threads', type: 'int', values: [] },
  { key: 'verifyChecksum', name: 'verify_checksum', type: 'bool', values: [] },
  { key: 'logUnclaimed', name: 'log_unclaimed', type: 'bool', values: [] },
];
