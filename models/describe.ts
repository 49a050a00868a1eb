/** A value as an error shows it: JSON where it has some, cut where it is long. */
export function describe(value: unknown): string {
  const text = json(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** JSON, of what has none that tells something: undefined. */
function json(value: unknown): string | undefined {
  if (typeof value === 'number') return undefined; // NaN would be null
  try {
    return JSON.stringify(value);
  } catch {
    return undefined;
  }
}
