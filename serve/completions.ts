import { randomUUID } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import { breathe } from '../models/generation/event-loop.js';
import {
  type GeneratedPiece,
  type GeneratedText,
  type Generation,
  TextAssembler,
  type Tokenizer,
  type TokenLogprob,
} from '../models/index.js';

/** One chosen token's log-probabilities in OpenAI's form; lists of one entry a token. */
interface LogprobLists {
  tokens: string[];
  token_logprobs: number[];
  top_logprobs: Record<string, number>[];
  text_offset: number[];
}

/** The texts of one request on their way to the client. */
export class Completion {
  private readonly head: object;

  constructor(
    private readonly generations: readonly Generation[],
    private readonly tokenizer: Tokenizer,
    model: string,
    /** How many texts each prompt has: its tokens count once. */
    private readonly perPrompt: number,
  ) {
    const created = Math.floor(Date.now() / 1000);
    this.head = { id: `cmpl-${randomUUID()}`, object: 'text_completion', created, model };
  }

  /** The whole answer, JSON, when all texts have ended. Log-probabilities are megabytes: others are served while they are written. */
  async whole(): Promise<string> {
    const texts = await Promise.all(this.generations.map(({ result }) => result));
    const choices: string[] = [];
    for (const [index, { text, finishReason, tokenIds, promptTokens, logprobs }] of texts.entries()) {
      const pieces = logprobs?.map((entry, i) => ({ ...entry, tokenId: tokenIds[promptTokens + i] as number }));
      const lists = pieces ? await this.logprobs(pieces, new TokenOffsets(this.tokenizer)) : null;
      choices.push(JSON.stringify({ index, text, finish_reason: finishReason, logprobs: lists }));
      await breathe();
    }
    const head = JSON.stringify(this.head).slice(0, -1);
    return `${head},"choices":[${choices.join()}],"usage":${JSON.stringify(this.usage(texts))}}`;
  }

  /** Writes server-sent events as tokens are made, those of all texts mixed; waits where the client reads slowly. */
  async stream(response: ServerResponse, includeUsage: boolean): Promise<void> {
    // All texts wait for the same.
    let room: Promise<void> | undefined;
    const send = async (data: object) => {
      // With the error of another text.
      if (response.writableEnded) return;
      if (response.write(`data: ${JSON.stringify({ ...this.head, ...data })}\n\n`) || response.destroyed) return;
      room ??= drained(response).finally(() => {
        room = undefined;
      });
      await room;
    };
    const texts = await Promise.all(
      this.generations.map(async (generation, index) => {
        const offsets = new TokenOffsets(this.tokenizer);
        for await (const piece of generation) {
          const logprobs = piece.logprob === undefined ? null : await this.logprobs([piece], offsets);
          if (piece.text !== '' || logprobs)
            await send({ choices: [{ index, text: piece.text, logprobs, finish_reason: null }] });
        }
        const text = await generation.result;
        await send({ choices: [{ index, text: '', logprobs: null, finish_reason: text.finishReason }] });
        return text;
      }),
    );
    if (includeUsage) await send({ choices: [], usage: this.usage(texts) });
    response.end('data: [DONE]\n\n');
  }

  private async logprobs(
    pieces: readonly Pick<GeneratedPiece, 'tokenId' | 'logprob' | 'top'>[],
    offsets: TokenOffsets,
  ): Promise<LogprobLists> {
    const lists: LogprobLists = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
    for (const { tokenId, logprob = Number.NaN, top = [] } of pieces) {
      lists.tokens.push(tokenName(this.tokenizer, tokenId));
      lists.token_logprobs.push(logprob);
      lists.top_logprobs.push(this.named([...top, { tokenId, logprob }]));
      lists.text_offset.push(offsets.next(tokenId));
      await breathe();
    }
    return lists;
  }

  /**
   * Log-probabilities by the tokens' names: of the likeliest tokens, and of the chosen one also where it is none of them. Of tokens with the
   * same name the first counts, which is the likeliest.
   */
  private named(top: readonly TokenLogprob[]): Record<string, number> {
    const found = new Map<string, number>();
    for (const { tokenId, logprob } of top) {
      const name = tokenName(this.tokenizer, tokenId);
      if (!found.has(name)) found.set(name, logprob);
    }
    return Object.fromEntries(found);
  }

  private usage(texts: readonly GeneratedText[]): object {
    const prompt = texts.reduce((sum, text, i) => sum + (i % this.perPrompt === 0 ? text.promptTokens : 0), 0);
    const made = texts.reduce((sum, text) => sum + text.tokenIds.length - text.promptTokens, 0);
    return { prompt_tokens: prompt, completion_tokens: made, total_tokens: prompt + made };
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * What OpenAI calls a token: its text, or, of one whose bytes alone are no text, these, such as `bytes:\xe2\x80`; a special token is empty.
 */
function tokenName(tokenizer: Tokenizer, id: number): string {
  const text = tokenizer.textOf?.(id);
  if (text !== undefined) return text;
  const bytes = tokenizer.bytesOf?.(id);
  if (!bytes) return tokenizer.decode([id]);
  try {
    return utf8.decode(bytes);
  } catch {
    const named = (byte: number) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : `\\x${hex(byte)}`);
    return `bytes:${Array.from(bytes, named).join('')}`;
  }
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}

/**
 * Where in a text its tokens begin; one that holds a later part of a character begins where the character does. What is held back for a stop
 * string counts as text.
 */
class TokenOffsets {
  private readonly assembler: TextAssembler;
  private length = 0;

  constructor(tokenizer: Tokenizer) {
    this.assembler = new TextAssembler(tokenizer);
  }

  /** The offset of the next token. */
  next(tokenId: number): number {
    const offset = this.length;
    this.length += this.assembler.push(tokenId).length;
    return offset;
  }
}

/** Resolves when the response takes more, or never will. */
function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off('drain', done).off('close', done);
      resolve();
    };
    response.on('drain', done).on('close', done);
  });
}
