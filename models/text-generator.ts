import type { Decoder } from './decoder.js';
import { ModelFolderError } from './errors.js';
import type { Tokenizer } from './tokenizer.js';

/** How to generate. */
export interface GenerateOptions {
  /** Most tokens to generate for each prompt; default 64. */
  readonly maxNewTokens?: number | undefined;
  /** Tokens that end a text; default the model's end of text. */
  readonly stopTokenIds?: readonly number[] | undefined;
  /** Stops between two tokens; the signal's reason is thrown. */
  readonly signal?: AbortSignal | undefined;
}

/** A piece of a text that is being generated. */
export interface GeneratedPiece {
  readonly tokenId: number;
  /** What this token adds to the text: empty while a character is unfinished. */
  readonly text: string;
}

/** A generated text. */
export interface GeneratedText {
  /** Prompt and generated tokens, the one that ended the text included. */
  readonly tokenIds: readonly number[];
  /** The generated text without the prompt. */
  readonly text: string;
  /** `stop`: a stop token came; `length`: maxNewTokens or the model's longest sequence is reached. */
  readonly finishReason: 'stop' | 'length';
}

/** The few facts about a model that generation needs; an OptConfig has them. */
export interface GeneratorConfig {
  readonly eosTokenId: number;
  readonly padTokenId: number;
  /** Longest sequence of prompt and generated tokens. */
  readonly maxPositions: number;
}

/** Greedy text generation with a cache, one prompt or a batch, in any session that a Decoder takes. */
export class TextGenerator {
  constructor(
    private readonly decoder: Decoder,
    private readonly tokenizer: Tokenizer,
    private readonly config: GeneratorConfig,
  ) {}

  /** Yields each token of the continuation of one prompt as it is made. */
  async *stream(prompt: string, options: GenerateOptions = {}): AsyncGenerator<GeneratedPiece, GeneratedText> {
    const ids = this.tokenizer.encode(prompt);
    const text = new TextAssembler(this.tokenizer);
    const steps = this.steps([ids], options);
    for (;;) {
      const step = await steps.next();
      if (step.done) return this.finish(ids, step.value[0] as Continuation);
      const [tokenId] = step.value as [number];
      yield { tokenId, text: text.push(tokenId) };
    }
  }

  /** Continues several prompts at once, padded on the left. @returns the texts in the order of the prompts. */
  async generate(prompts: readonly string[], options: GenerateOptions = {}): Promise<GeneratedText[]> {
    if (prompts.length === 0) return [];
    const ids = prompts.map((prompt) => this.tokenizer.encode(prompt));
    const steps = this.steps(ids, options);
    for (;;) {
      const step = await steps.next();
      if (step.done) return step.value.map((continuation, i) => this.finish(ids[i] as number[], continuation));
    }
  }

  private finish(prompt: readonly number[], { tokenIds, finishReason }: Continuation): GeneratedText {
    return { tokenIds: [...prompt, ...tokenIds], text: this.tokenizer.decode(tokenIds), finishReason };
  }

  /** Yields one token for each row a step, those of finished rows being padding. */
  private async *steps(
    prompts: readonly (readonly number[])[],
    options: GenerateOptions,
  ): AsyncGenerator<number[], Continuation[]> {
    const { maxNewTokens = 64, stopTokenIds = [this.config.eosTokenId], signal } = options;
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    this.check(longest, Math.min(...prompts.map((prompt) => prompt.length)), maxNewTokens);
    const room = Math.min(maxNewTokens, this.config.maxPositions - longest);
    const mask = prompts.map((prompt) =>
      Array.from({ length: longest }, (_, i) => Number(i >= longest - prompt.length)),
    );
    const made: Continuation[] = prompts.map(() => ({ tokenIds: [], finishReason: 'length' }));
    let ids = prompts.map((prompt) => [
      ...new Array<number>(longest - prompt.length).fill(this.config.padTokenId),
      ...prompt,
    ]);
    let cache: Awaited<ReturnType<Decoder['step']>>['cache'] | undefined;
    for (let n = 0; n < room && made.some((row) => row.finishReason !== 'stop'); n++) {
      signal?.throwIfAborted();
      const step = await this.decoder.step({ ids, mask, cache });
      cache = step.cache;
      const next = made.map((row, b) =>
        row.finishReason === 'stop' ? this.config.padTokenId : argmax(step.logits.at(b, step.logits.tokens - 1)),
      );
      made.forEach((row, b) => {
        if (row.finishReason !== 'stop') this.append(row, next[b] as number, stopTokenIds);
        mask[b]?.push(1);
      });
      ids = next.map((token) => [token]);
      yield next;
    }
    return made;
  }

  private append(row: Continuation, token: number, stopTokenIds: readonly number[]): void {
    row.tokenIds.push(token);
    if (stopTokenIds.includes(token)) row.finishReason = 'stop';
  }

  private check(longest: number, shortest: number, maxNewTokens: number): void {
    if (shortest === 0)
      throw new ModelFolderError('USAGE', 'a prompt has no tokens; begin it with the model’s first token');
    if (longest > this.config.maxPositions)
      throw new ModelFolderError(
        'USAGE',
        `a prompt has ${longest} tokens, the model takes at most ${this.config.maxPositions}`,
      );
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 0)
      throw new ModelFolderError('USAGE', `maxNewTokens is ${maxNewTokens}, expected a whole number ≥ 0`);
  }
}

interface Continuation {
  readonly tokenIds: number[];
  finishReason: GeneratedText['finishReason'];
}

/** Index of the largest number, the first of equals. */
export function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}

/**
 * Turns tokens into text piece by piece. A token may hold part of a character only, and a token's text may depend on
 * the one before it: so the tail since the last whole character is decoded with and without the new token, and the
 * difference is new.
 */
export class TextAssembler {
  private readonly ids: number[] = [];
  private prefix = 0;
  private read = 0;

  constructor(private readonly tokenizer: Tokenizer) {}

  /** The text that this token completes. */
  push(id: number): string {
    this.ids.push(id);
    const before = this.tokenizer.decode(this.ids.slice(this.prefix, this.read));
    const after = this.tokenizer.decode(this.ids.slice(this.prefix));
    if (after.length <= before.length || after.endsWith('\ufffd')) return '';
    this.prefix = this.read;
    this.read = this.ids.length;
    return after.slice(before.length);
  }
}
