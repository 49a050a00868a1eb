/** What errors about a caller's values have in common: how a value is shown, and which name was meant. */

/** A value as an error shows it: its JSON where that tells more, cut to 60 characters. */
export function describe(value: unknown): string {
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'number') return String(value); // NaN has no JSON
  let text: string;
  try {
    text = JSON.stringify(value) ?? String(value);
  } catch {
    return 'something that cannot be shown'; // nested too deeply, or within itself
  }
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/**
 * The known name that a wrong one is likely to be: it differs in case, underscores, the object that it is in (`prune.sparsity`) or a few letters.
 *
 * @returns undefined where none is near.
 */
export function nearestName(wrong: string, known: readonly string[]): string | undefined {
  const plain = (name: string) => (name.split('.').at(-1) as string).replace(/[_-]/g, '').toLowerCase();
  const [best] = known
    .map((name) => ({ name, distance: editDistance(plain(wrong), plain(name)) }))
    .sort((a, b) => a.distance - b.distance);
  return best && best.distance <= Math.max(1, Math.floor(plain(best.name).length / 3)) ? best.name : undefined;
}

/** Letters to insert, remove or replace to make one text the other (Levenshtein). */
function editDistance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, i) => i);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      const replaced = (row[j - 1] as number) + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] as number) + 1, (next[j - 1] as number) + 1));
    }
    row = next;
  }
  return row[to.length] as number;
}
