import type { Tokenizer } from '../tokenizer.js';

/** Tokens that wait for the end of a character; a character has four bytes, but a token may end one and begin the next. */
const MOST_HELD = 16;

/**
 * Turns tokens into text piece by piece. A token may hold part of a character only, and a token's text may depend on
 * the one before it: so the tail since the last whole character is decoded with and without the new token, and the
 * difference is new.
 */
export class TextAssembler {
  private readonly ids: number[] = [];
  private prefix = 0;
  private read = 0;

  constructor(private readonly tokenizer: Pick<Tokenizer, 'decode'>) {}

  /** The text that this token completes. */
  push(id: number): string {
    this.ids.push(id);
    return this.advance(this.ids.length - this.read >= MOST_HELD);
  }

  /** What unfinished characters are left at the end, as U+FFFD. */
  flush(): string {
    return this.advance(true);
  }

  private advance(all: boolean): string {
    const before = this.tokenizer.decode(this.ids.slice(this.prefix, this.read));
    const after = this.tokenizer.decode(this.ids.slice(this.prefix));
    if (after.length <= before.length || (!all && after.endsWith('\ufffd'))) return '';
    this.prefix = this.read;
    this.read = this.ids.length;
    return after.slice(before.length);
  }
}
