import { FlashLLMError } from '../provider/errors.js';

/** What was refused: configuration, weights' files, a tensor in them, tokenizer, or how a function was called. */
export type ModelFolderErrorKind = 'CONFIG' | 'CHECKPOINT' | 'TENSOR' | 'TOKENIZER' | 'USAGE';

/**
 * A model folder that cannot be used, or not in the way asked. The message says what failed, what was found, what was
 * expected and what to do next; `code` (`ERR_FLASHLLM_CONFIG` …) is stable.
 */
export class ModelFolderError extends FlashLLMError {
  override readonly name = 'ModelFolderError';

  constructor(
    readonly kind: ModelFolderErrorKind,
    message: string,
    options?: ErrorOptions,
  ) {
    super(`ERR_FLASHLLM_${kind}`, message, options);
  }
}
