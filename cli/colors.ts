/** Colours of what the command prints, decided for each stream by itself: picocolors looks at standard output only, and takes CI for a terminal. */
import pc from 'picocolors';

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Whether a stream gets colours: a terminal, unless NO_COLOR is set or TERM is dumb. FORCE_COLOR gives them to files and pipes, too, or with
 * `0` or `false` to nothing.
 */
export function takesColors(stream: { readonly isTTY?: boolean }, env: Environment = process.env): boolean {
  if (env.NO_COLOR) return false;
  if (env.FORCE_COLOR) return env.FORCE_COLOR !== '0' && env.FORCE_COLOR !== 'false';
  return stream.isTTY === true && env.TERM !== 'dumb';
}

/** For standard output. */
export const out = pc.createColors(takesColors(process.stdout));

/** For standard error. */
export const err = pc.createColors(takesColors(process.stderr));
