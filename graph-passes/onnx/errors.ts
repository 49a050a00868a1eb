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

/** What a system says that lets nothing be written in a place, or no more. */
const NOT_WRITABLE = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'EACCES', 'EPERM', 'EROFS']);

/**
 * An error that came up while an output was written, said of the output: the system names a hidden temporary file, or none. Any other error, and
 * one of a file that `isOurs` does not know, comes back as it is.
 * @param output what the user calls the output.
 */
export function ofOutput(error: unknown, output: string, isOurs: (path: string) => boolean = () => true): unknown {
  if (!(error instanceof Error)) return error;
  const { code = '', path } = error as NodeJS.ErrnoException;
  if (!NOT_WRITABLE.has(code) || (path !== undefined && !isOurs(path))) return error;
  // Node's message is 'ENOSPC: no space left on device, write'.
  const [, reason = error.message] = /^[A-Z]+: (.*?), /.exec(error.message) ?? [];
  return new OutputError(`cannot write to ${output}: ${reason} (${code}); choose another folder`, { cause: error });
}
