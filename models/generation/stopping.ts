/**
 * Finds stop strings in a text that comes in pieces. What could be the beginning of one is held back until it is clear.
 */
export class StopStrings {
  private held = '';

  constructor(private readonly stops: readonly string[]) {}

  /**
   * @returns the text that is certain now, and whether a stop string came: the text ends before it. Of several the one
   * that begins first counts.
   */
  push(piece: string): { text: string; stopped: boolean } {
    if (this.stops.length === 0) return { text: piece, stopped: false };
    const all = this.held + piece;
    const found = this.stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.held = '';
      return { text: all.slice(0, Math.min(...found)), stopped: true };
    }
    const kept = Math.max(...this.stops.map((stop) => overlap(all, stop)));
    this.held = all.slice(all.length - kept);
    return { text: all.slice(0, all.length - kept), stopped: false };
  }

  /** What is still held back, when the text has ended otherwise. */
  flush(): string {
    const { held } = this;
    this.held = '';
    return held;
  }
}

/** Length of the longest end of the text that a stop string, longer than it, begins with. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--)
    if (text.endsWith(stop.slice(0, length))) return length;
  return 0;
}
