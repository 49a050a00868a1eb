// Generated from provider/ep/options.json by scripts/generate-options.mjs.

/** Options of the flashllm execution provider: `executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu']`. */
export interface FlashLLMOptions {
  readonly name: 'flashllm';
  /** Where SparseMatMul runs. auto takes the best device that this build and machine have. Default: 'auto'. */
  readonly device?: 'auto' | 'cpu' | 'cuda';
  /** CPU instruction set of the kernels. auto takes the best one that the processor has; reference is plain C++. Default: 'auto'. */
  readonly isa?: 'auto' | 'avx512' | 'avx2' | 'reference';
  /** Into how many parts a product is cut for ONNX Runtime's thread pool. 0: intraOpNumThreads in Node, else one per core. Default: 0. */
  readonly threads?: number;
  /** Whether the checksum of each packed weight is verified when a session is created. Bounds are always checked. Default: true. */
  readonly verifyChecksum?: boolean;
  /** Whether the reason for each SparseMatMul that the provider does not claim is logged as a warning instead of at info level. Default: false. */
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
  { key: 'isa', name: 'isa', type: 'enum', values: ['auto', 'avx512', 'avx2', 'reference'] },
  { key: 'threads', name: 'threads', type: 'int', values: [] },
  { key: 'verifyChecksum', name: 'verify_checksum', type: 'bool', values: [] },
  { key: 'logUnclaimed', name: 'log_unclaimed', type: 'bool', values: [] },
];
