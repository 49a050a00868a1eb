import type { Tokenizer } from '../tokenizer.js';
import type { ScheduledSequence } from './batch.js';
import type { ResolvedOptions } from './options.js';
import { logprobs, Sampler, type TokenLogprob } from './sampling.js';
import { StopStrings } from './stopping.js';
import { TextAssembler } from './text-assembler.js';

/** A piece of a text that is being generated. */
export interface GeneratedPiece {
  readonly tokenId: number;
  /** What is certain of the text since the last piece: empty while a character or a stop string may be unfinished. */
  readonly text: string;
  /** Natural logarithm of the token's probability, and the likeliest tokens; where log-probabilities are asked for. */
  readonly logprob?: number;
  readonly top?: readonly TokenLogprob[];
}

/** Why a text ended. `stop`: a stop token or string came; `length`: maxNewTokens or the model's longest sequence. */
export type FinishReason = 'stop' | 'length';

/** A generated text. */
export interface GeneratedText {
  /** Prompt and generated tokens, the one that ended the text included. */
  readonly tokenIds: readonly number[];
  /** How many of them are the prompt. */
  readonly promptTokens: number;
  /** The generated text without the prompt, up to what ended it. */
  readonly text: string;
  readonly finishReason: FinishReason;
  /** One for each generated token, where log-probabilities were asked for. */
  readonly logprobs?: readonly { readonly logprob: number; readonly top: readonly TokenLogprob[] }[];
}

/** Where a sequence's output goes. */
export interface SequenceSink {
  piece(piece: GeneratedPiece): void;
  end(text: GeneratedText): void;
  fail(error: unknown): void;
}

/** One text in the making: chooses tokens, finds its end, and gives the text out in pieces. */
export class TextSequence implements ScheduledSequence {
  private readonly made: number[] = [];
  private readonly logprobs: { logprob: number; top: readonly TokenLogprob[] }[] = [];
  private text = '';
  private readonly sampler: Sampler;
  private readonly assembler: TextAssembler;
  private readonly stops: StopStrings;

  /** @param room most tokens to make. */
  constructor(
    readonly prompt: readonly number[],
    private readonly room: number,
    private readonly options: ResolvedOptions,
    tokenizer: Tokenizer,
    private readonly sink: SequenceSink,
  ) {
    this.sampler = new Sampler(options, prompt);
    this.assembler = new TextAssembler(tokenizer);
    this.stops = new StopStrings(options.stop);
  }

  get limit(): number {
    return this.prompt.length + this.room;
  }

  get greedy(): boolean {
    const { logprobs, minNewTokens, stopTokenIds } = this.options;
    const banned = this.made.length < minNewTokens && stopTokenIds.length > 0;
    return this.sampler.greedy && !banned && logprobs === undefined;
  }

  next(logits: Float32Array | undefined, likeliest = 0): number | undefined {
    const { stopTokenIds, minNewTokens } = this.options;
    const early = this.made.length < minNewTokens;
    const tokenId = logits ? this.sampler.sample(logits, early ? stopTokenIds : []) : likeliest;
    this.made.push(tokenId);
    const ended = !early && stopTokenIds.includes(tokenId);
    let { text, stopped } = ended ? { text: '', stopped: false } : this.read(this.assembler.push(tokenId), early);
    const full = this.made.length >= this.room;
    if (!stopped && (ended || full)) {
      const rest = this.stops.push(this.assembler.flush());
      text += rest.stopped ? rest.text : rest.text + this.stops.flush();
      stopped = rest.stopped;
    }
    this.text += text;
    this.sink.piece({ tokenId, text, ...(logits ? this.likelihood(logits, tokenId) : {}) });
    if (!ended && !stopped && !full) return tokenId;
    this.finish(ended || stopped ? 'stop' : 'length');
    return undefined;
  }

  /** Ends the text as it is; for one that has no room at all. */
  finish(finishReason: FinishReason): void {
    this.sink.end({
      tokenIds: [...this.prompt, ...this.made],
      promptTokens: this.prompt.length,
      text: this.text,
      finishReason,
      ...(this.options.logprobs === undefined ? {} : { logprobs: this.logprobs }),
    });
  }

  fail(error: unknown): void {
    this.sink.fail(error);
  }

  private read(piece: string, early: boolean): { text: string; stopped: boolean } {
    return early ? { text: piece, stopped: false } : this.stops.push(piece);
  }

  private likelihood(logits: Float32Array, tokenId: number): Pick<GeneratedPiece, 'logprob' | 'top'> {
    if (this.options.logprobs === undefined) return {};
    const found = logprobs(logits, tokenId, this.options.logprobs);
    this.logprobs.push(found);
    return found;
  }
}
