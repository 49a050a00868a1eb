/** An ONNX file that is malformed, lies about itself, or is beyond what is supported. */
export class ModelError extends Error {
  override readonly name = 'ModelError';
  readonly code: string = 'ERR_FLASHLLM_MODEL';

  /** The same error, said of a named file. */
  in(file: string): ModelError {
    return new ModelError(`${file}: ${this.message}`, { cause: this });
  }
}

/** An output that cannot be written as asked. */
export class OutputError extends Error {
  override readonly name = 'OutputError';
  readonly code: string = 'ERR_FLASHLLM_OUTPUT';
}
