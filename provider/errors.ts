const brand = Symbol.for('onnxruntime-ep-flashllm.error');

/** Names of ONNX Runtime's error codes (OrtErrorCode), by number. */
const ortCodes = [
  'ORT_OK',
  'ORT_FAIL',
  'ORT_INVALID_ARGUMENT',
  'ORT_NO_SUCHFILE',
  'ORT_NO_MODEL',
  'ORT_ENGINE_ERROR',
  'ORT_RUNTIME_EXCEPTION',
  'ORT_INVALID_PROTOBUF',
  'ORT_MODEL_LOADED',
  'ORT_NOT_IMPLEMENTED',
  'ORT_INVALID_GRAPH',
  'ORT_EP_FAIL',
  'ORT_MODEL_LOAD_CANCELED',
  'ORT_MODEL_REQUIRES_COMPILATION',
  'ORT_NOT_FOUND',
] as const;

/** Base of this package's errors. `code` is stable; `instanceof` also holds for errors of another copy of the package. */
export class FlashLLMError extends Error {
  override readonly name: string = 'FlashLLMError';
  readonly [brand] = true;

  /** @param code a stable name to decide by; `message` is for people. */
  constructor(
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    if (typeof value !== 'object' || value === null || !(brand in value)) return false;
    // `this` may be a class of another copy of the package, so that subclasses are told apart by name.
    for (let type = Object.getPrototypeOf(value); type !== null; type = Object.getPrototypeOf(type)) {
      // biome-ignore lint/complexity/noThisInStatic: a subclass must ask for itself, not for its base
      if (type.constructor?.name === this.name) return true;
    }
    return false;
  }
}

/** ONNX Runtime, or the provider inside it, refused or failed. `code` is ONNX Runtime's: `ORT_INVALID_GRAPH`, `ORT_NO_SUCHFILE` … */
export class OrtError extends FlashLLMError {
  override readonly name = 'OrtError';

  /** @param ortCode the number of OrtErrorCode. */
  constructor(
    readonly ortCode: number,
    message: string,
    options?: ErrorOptions,
  ) {
    super(ortCodes[ortCode] ?? `ORT_${ortCode}`, message, options);
  }
}

/** The native binaries are missing or did not load. The message lists ways to fix it. */
export class NativeLoadError extends FlashLLMError {
  override readonly name = 'NativeLoadError';
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_FLASHLLM_LOAD', message, options);
  }
}

/** An option or argument is not what it should be: what was found, what was expected. */
export class InvalidOptionError extends FlashLLMError {
  override readonly name = 'InvalidOptionError';
  constructor(message: string) {
    super('ERR_FLASHLLM_OPTION', message);
  }
}

/** What ONNX Runtime writes where it wraps one error in another, as it does for what a provider reports at its creation. */
const wrapped = /\[ONNXRuntimeError\] : (\d+) : [A-Z_]+ : (.*)/s;

/** What a native function threw, as one of this package's errors where it carries ONNX Runtime's code. */
export function fromNative(error: unknown): unknown {
  if (!(error instanceof Error) || typeof (error as { ortCode?: unknown }).ortCode !== 'number') return error;
  const inner = wrapped.exec(error.message);
  if (inner !== null) return new OrtError(Number(inner[1]), (inner[2] ?? '').trim());
  return new OrtError((error as Error & { ortCode: number }).ortCode, error.message);
}
