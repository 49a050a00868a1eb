import type { Tokenizer } from '../tokenizer.js';

/** Tokens that wait for the end of a character; a character has four bytes, but a token may end one and begin the next. */
const MOST_HELD = 16;

/** Tokens, of a byte at least each, after which a character that has begun has ended. */
const LONGEST_REST = 3;

/**
 * Turns tokens into text piece by piece. A token may hold part of a character only, and a token's text may depend on
 * the one before it: so the tail since the last whole character is decoded with and without the new token, and the
 * difference is new. Where the tokenizer knows what a token adds, nothing is decoded.
 */
export class TextAssembler {
  private readonly ids: number[] = [];
  private prefix = 0;
  private read = 0;

  constructor(private readonly tokenizer: Pick<Tokenizer, 'decode' | 'textOf'>) {}

  /** The text that this token completes. */
  push(id: number): string {
    const known = this.read === this.ids.length ? this.tokenizer.textOf?.(id) : undefined;
    if (known !== undefined) {
      // What comes next does not depend on what is whole.
      this.ids.length = this.prefix = this.read = 0;
      return known;
    }
    this.ids.push(id);
    const text = this.advance(false);
    return text === '' && this.ids.length - this.read >= MOST_HELD ? this.release() : text;
  }

  /** What unfinished characters are left at the end, as U+FFFD. */
  flush(): string {
    return this.advance(true);
  }

  private advance(all: boolean): string {
    const before = this.decode(this.read);
    const after = this.decode(this.ids.length);
    if (after.length <= before.length || (!all && after.endsWith('\ufffd'))) return '';
    return this.give(before, after, this.ids.length);
  }

  /** Gives out nonsense bytes, but for the last ones: they may be the beginning of a character. */
  private release(): string {
    const before = this.decode(this.read);
    const after = this.decode(this.ids.length);
    for (let end = this.ids.length - LONGEST_REST; end > this.read; end--) {
      const text = this.decode(end);
      // Else a character lies across this place.
      if (text.length > before.length && after.startsWith(text)) return this.give(before, text, end);
    }
    return this.advance(true);
  }

  private give(before: string, after: string, end: number): string {
    this.prefix = this.read;
    this.read = end;
    return after.slice(before.length);
  }

  private decode(end: number): string {
    return this.tokenizer.decode(this.ids.slice(this.prefix, end));
  }
}
