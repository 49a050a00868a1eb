/**
 * A model folder, checkpoint or configuration that cannot be used. The message says what failed, what was found, what was
 * expected and what to do next; `code` is stable and meant for programs.
 */
export class ModelError extends Error {
  override readonly name = 'ModelError';

  constructor(
    readonly code: ModelErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Why a model was refused: its configuration, its weights' files, a tensor in them, its tokenizer, or how it was called. */
export type ModelErrorCode = 'CONFIG' | 'CHECKPOINT' | 'TENSOR' | 'TOKENIZER' | 'USAGE';
