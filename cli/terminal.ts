import { out } from './colors.js';

/** Bytes in the largest unit that keeps three digits: `12.3 MB`. Units are powers of 1000, as disks and bandwidths are stated. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

/** Seconds as a person reads them: `0.42 s`, `12 s`, `3 min 05 s`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, '0')} s`;
}

/**
 * Text on one line, with its control characters written as escapes: names come from models, and a terminal would do what they say.
 */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

/** One column of a table. */
export interface Column {
  header: string;
  align?: 'left' | 'right';
}

/** Lines of a table with aligned columns, the header underlined; cells are made {@link printable}. */
export function formatTable(columns: readonly Column[], texts: readonly (readonly string[])[]): string {
  const rows = texts.map((row) => row.map(printable));
  const widths = columns.map((column, i) =>
    rows.reduce((most, row) => Math.max(most, (row[i] ?? '').length), column.header.length),
  );
  const line = (cells: readonly string[]): string =>
    columns
      .map((column, i) => {
        const cell = cells[i] ?? '';
        const width = widths[i] ?? 0;
        return column.align === 'right' ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd();
  const header = line(columns.map((column) => column.header));
  return [out.bold(header), out.dim(widths.map((width) => '─'.repeat(width)).join('  ')), ...rows.map(line)].join('\n');
}

/** A progress bar on standard error: redrawn in place on a terminal, silent elsewhere. */
export class Progress {
  private readonly started = performance.now();
  private last = 0;
  private readonly live: boolean;

  /** @param total in the unit that `update` counts; `describe` renders a count for people (default: bytes). */
  constructor(
    private readonly title: string,
    private readonly total: number,
    private readonly describe: (count: number) => string = formatBytes,
    private readonly stream: NodeJS.WriteStream = process.stderr,
  ) {
    this.live = stream.isTTY === true;
  }

  /** Shows that `done` of the total is done, with rate and time left; redraws at most ten times a second. */
  update(done: number, note = ''): void {
    const now = performance.now();
    if (!this.live || (now - this.last < 100 && done < this.total)) return;
    this.last = now;
    const fraction = this.total > 0 ? Math.min(1, done / this.total) : 1;
    const seconds = (now - this.started) / 1000;
    const left = fraction > 0 ? (seconds / fraction) * (1 - fraction) : Number.NaN;
    const bar = '█'.repeat(Math.round(fraction * 24)).padEnd(24, '░');
    const eta = Number.isFinite(left) ? `, ${formatSeconds(left)} left` : '';
    const text = `${this.title} ${bar} ${(fraction * 100).toFixed(0).padStart(3)} %  ${this.describe(done)} of ${this.describe(this.total)}${eta}  ${note}`;
    this.stream.write(`\r\u001b[K${text.slice(0, Math.max(20, (this.stream.columns ?? 100) - 1))}`);
  }

  /** Removes the bar. */
  stop(): void {
    if (this.live) this.stream.write('\r\u001b[K');
  }
}

/** Signals that ask a command to stop, and the exit codes that tell of them. SIGHUP comes of a terminal that is closed or a connection that is lost. */
const STOPS = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;
type Stop = keyof typeof STOPS;

/** One request to stop may come as two signals: GNU timeout sends its own to the process and to its group. */
const ONE_STOP_MS = 500;

/**
 * An AbortSignal that the first Ctrl-C (SIGINT), SIGTERM or SIGHUP aborts; one that comes later, not with the first, ends the process at once.
 * `release` takes the handlers away.
 */
export function abortOnInterrupt(): { signal: AbortSignal; release: () => void } {
  const controller = new AbortController();
  let first = 0;
  const onSignal = (name: NodeJS.Signals): void => {
    if (!controller.signal.aborted) {
      first = performance.now();
      controller.abort(new InterruptedError(name as Stop));
      return;
    }
    // A terminal that is gone has nobody who is tired of waiting: shells and systemd send SIGHUP after another signal.
    if (name !== 'SIGHUP' && performance.now() - first > ONE_STOP_MS) process.exit(STOPS[name as Stop]);
  };
  for (const name of Object.keys(STOPS)) process.on(name, onSignal);
  return {
    signal: controller.signal,
    release: () => {
      for (const name of Object.keys(STOPS)) process.off(name, onSignal);
    },
  };
}

/** Whether an exit code tells that a command was asked to stop, and has said so. */
export function tellsOfStop(code: number | null): boolean {
  return (Object.values(STOPS) as (number | null)[]).includes(code);
}

/** The user's interrupt, as the reason of an aborted signal. */
export class InterruptedError extends Error {
  override readonly name = 'InterruptedError';
  /** What is left of the work, for the user; undefined where that has been said. */
  left: string | undefined = 'nothing was left half-written';

  constructor(readonly signalName: Stop) {
    super(`interrupted by ${signalName}`);
  }

  /** Says what is left of the work that a signal has stopped, if it was stopped by one of the user's. */
  static leaves({ reason }: AbortSignal, left: string | undefined): void {
    if (reason instanceof InterruptedError) reason.left = left;
  }

  /** What the command ends with. */
  get exitCode(): number {
    return STOPS[this.signalName];
  }
}
