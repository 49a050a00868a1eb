import type { GeneratedPiece, GeneratedText, SequenceSink } from './sequence.js';

/** A text that is being generated: its pieces, one iterator's, and its end. */
export class Generation implements AsyncIterable<GeneratedPiece> {
  /** The whole text; rejects with what ended it otherwise. */
  readonly result: Promise<GeneratedText>;
  private readonly pieces: GeneratedPiece[] = [];
  private wake: (() => void) | undefined;
  private state: 'running' | 'done' | 'failed' = 'running';
  private settle!: { resolve: (text: GeneratedText) => void; reject: (error: unknown) => void };
  private release: () => void = () => {};
  private watcher: (piece: GeneratedPiece) => void = () => {};

  constructor() {
    this.result = new Promise((resolve, reject) => {
      this.settle = { resolve, reject };
    });
    // Who iterates gets the error there.
    this.result.catch(() => {});
  }

  /** What the sequence writes to. */
  readonly sink: SequenceSink = {
    piece: (piece) => {
      this.pieces.push(piece);
      this.watcher(piece);
      this.wake?.();
    },
    end: (text) => this.close('done', () => this.settle.resolve(text)),
    fail: (error) => this.close('failed', () => this.settle.reject(error)),
  };

  /** Calls `watcher` as each piece is made, before the iterator gives it out; it must not throw. */
  onPiece(watcher: (piece: GeneratedPiece) => void): void {
    this.watcher = watcher;
  }

  /** Calls `release` once when the text has ended, however. */
  onClose(release: () => void): void {
    if (this.state === 'running') this.release = release;
    else release();
  }

  /** Ends the generation: iterator and result give the reason. Nothing happens if it has ended already. */
  cancel(reason: unknown): void {
    this.sink.fail(reason);
  }

  /** Yields what is made; who leaves the loop early cancels the generation. */
  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedPiece, void> {
    try {
      for (;;) {
        if (this.state === 'failed') await this.result;
        const piece = this.pieces.shift();
        if (piece) yield piece;
        else if (this.state === 'done') return;
        else
          await new Promise<void>((resolve) => {
            this.wake = resolve;
          });
      }
    } finally {
      this.cancel(new Error('the reader has left'));
    }
  }

  private close(state: 'done' | 'failed', settle: () => void): void {
    if (this.state !== 'running') return;
    this.state = state;
    settle();
    this.release();
    this.wake?.();
  }
}
