import { onAbort } from '../provider/on-abort.js';
import { unexpected } from './arguments.js';
import type { Decoder } from './decoder.js';
import { ModelFolderError } from './errors.js';
import { Generation } from './generation/generation.js';
import { type GenerateOptions, resolveOptions } from './generation/options.js';
import { Scheduler, type SchedulerOptions } from './generation/scheduler.js';
import { type GeneratedPiece, type GeneratedText, TextSequence } from './generation/sequence.js';
import type { Tokenizer } from './tokenizer.js';

/** The few facts about a model that generation needs; an OptConfig has them. */
export interface GeneratorConfig {
  /** Tokens that end a text: one, or several; none where the list is empty. */
  readonly eosTokenId: number | readonly number[];
  /** Longest sequence of prompt and generated tokens. */
  readonly maxPositions: number;
  /** Tokens are below it; left out: the model finds out. */
  readonly vocabSize?: number;
}

/** A text, or its tokens with those that begin every text of the model. */
export type Prompt = string | readonly number[];

/**
 * Text generation in any session that a Decoder takes. All calls share one batch: prompts join it as they come and
 * leave it as they end, and get what they would get alone. On a GPU some memory may outlast them (`idleCacheBytes`): releasing the session of
 * `openTextModel` gives it back; who makes a generator of their own calls `scheduler.close()` before the session goes.
 */
export class TextGenerator {
  readonly scheduler: Scheduler;

  constructor(
    decoder: Decoder,
    private readonly tokenizer: Tokenizer,
    private readonly config: GeneratorConfig,
    options: SchedulerOptions = {},
  ) {
    this.scheduler = new Scheduler(decoder, options);
  }

  /** Yields each token of the continuation of one prompt as it is made. Who leaves the loop ends the generation. */
  async *stream(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<GeneratedPiece, GeneratedText> {
    const [generation] = this.start([prompt], options) as [Generation];
    for await (const piece of generation) {
      yield piece;
      options.signal?.throwIfAborted();
    }
    return await generation.result;
  }

  /** Continues a prompt. */
  generate(prompt: Prompt, options?: GenerateOptions): Promise<GeneratedText>;
  /** Continues several prompts at once. @returns the texts in the order of the prompts; if one fails, all end. */
  generate(prompts: readonly Prompt[], options?: GenerateOptions): Promise<GeneratedText[]>;
  async generate(
    given: Prompt | readonly Prompt[],
    options: GenerateOptions = {},
  ): Promise<GeneratedText | GeneratedText[]> {
    if (isPrompt(given)) return this.generateAll([given], options).then(([text]) => text as GeneratedText);
    return this.generateAll(given, options);
  }

  private async generateAll(prompts: readonly Prompt[], options: GenerateOptions): Promise<GeneratedText[]> {
    const generations = this.start(prompts, options);
    try {
      return await Promise.all(generations.map(({ result }) => result));
    } catch (error) {
      for (const generation of generations) generation.cancel(error);
      throw error;
    }
  }

  /**
   * Begins to continue prompts; all or none are taken.
   * @throws ModelFolderError `USAGE` for a prompt that is none, empty or too long, an unknown option or one out of range, or more prompts than
   * there is ever place for; QueueFullError if too many wait.
   */
  start(prompts: readonly Prompt[], options: GenerateOptions = {}): Generation[] {
    const resolved = resolveOptions(options, this.config.eosTokenId);
    const { signal, streamer } = options;
    signal?.throwIfAborted();
    if (!Array.isArray(prompts)) throw unexpected('prompts', prompts, 'a list of texts or of lists of token ids');
    if (streamer && prompts.length !== 1)
      throw new ModelFolderError('USAGE', `a streamer takes one prompt at a time, found ${prompts.length}`);
    const made = prompts.map((prompt: Prompt, i) => {
      if (typeof prompt !== 'string' && !Array.isArray(prompt))
        throw unexpected(`prompt ${i} of ${prompts.length}`, prompt, 'a text or a list of token ids');
      const ids = typeof prompt === 'string' ? this.tokenizer.encode(prompt) : prompt;
      const room = Math.min(resolved.maxNewTokens, this.config.maxPositions - this.checked(ids).length);
      const generation = new Generation();
      const sink = streamer ? streamed(generation, streamer) : generation.sink;
      const own = { ...resolved, seed: resolved.seed + i };
      return { generation, room, sequence: new TextSequence(ids, room, own, this.tokenizer, sink) };
    });
    this.scheduler.submit(...made.flatMap(({ room, sequence }) => (room > 0 ? [sequence] : [])));
    for (const { generation, room, sequence } of made) {
      const forget = signal && onAbort(signal, () => generation.cancel(signal.reason));
      generation.onClose(() => {
        forget?.();
        this.scheduler.cancel(sequence);
      });
      try {
        streamer?.put([sequence.prompt.map(BigInt)]);
        if (room === 0) sequence.finish('length');
      } catch (error) {
        // The streamer's: the sequence waits already, and would go on without it.
        generation.cancel(error);
      }
    }
    return made.map(({ generation }) => generation);
  }

  private checked(ids: readonly number[]): readonly number[] {
    const { maxPositions, vocabSize = 2 ** 31 } = this.config;
    if (ids.length === 0)
      throw new ModelFolderError('USAGE', 'a prompt has no tokens; begin it with the model’s first token');
    if (ids.length > maxPositions)
      throw new ModelFolderError(
        'USAGE',
        `a prompt has ${ids.length} tokens, the model takes at most ${maxPositions}; shorten it`,
      );
    const wrong = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
    if (wrong >= 0)
      throw new ModelFolderError(
        'USAGE',
        `a prompt has token ${ids[wrong]}, expected whole numbers from 0 to ${vocabSize - 1}`,
      );
    return ids;
  }
}

/** Whether it is one prompt, not a list of them: a text, or tokens. */
function isPrompt(given: Prompt | readonly Prompt[]): given is Prompt {
  return typeof given === 'string' || typeof given?.[0] === 'number';
}

/** Tells the streamer too; an error that it throws ends the generation. */
function streamed({ sink }: Generation, streamer: NonNullable<GenerateOptions['streamer']>): Generation['sink'] {
  return {
    piece: (piece) => {
      streamer.put([[BigInt(piece.tokenId)]]);
      sink.piece(piece);
    },
    end: (text) => {
      streamer.end();
      sink.end(text);
    },
    fail: (error) => sink.fail(error),
  };
}
