/** Sizes known only at run time: a symbol is a string in a canonical form, so that equal strings are equal sizes. */
export type Dim = number | string;

/** A symbol of a given name; what has a meaning in the canonical form is escaped. */
export function symbol(name: string): Dim {
  return `$${encodeURIComponent(name.replace(/\p{Surrogate}/gu, '\ufffd'))}`; // half a character has no URI
}

/** The sum of sizes. */
export function add(terms: readonly Dim[]): Dim {
  return combine(terms, '+', 0, (a, b) => a + b);
}

/** The product of sizes. */
export function product(factors: readonly Dim[]): Dim {
  return factors.includes(0) ? 0 : combine(factors, '*', 1, (a, b) => a * b);
}

function combine(
  parts: readonly Dim[],
  sign: '+' | '*',
  neutral: number,
  apply: (a: number, b: number) => number,
): Dim {
  let number = neutral;
  const symbols: string[] = [];
  for (const part of parts) {
    if (typeof part === 'number') number = apply(number, part);
    // A sum is kept flat in a sum, a product in a product; the other kind is one symbol in parentheses.
    else if (part.startsWith(`(${sign} `) && part.lastIndexOf('(') === 0) {
      for (const inner of part.slice(3, -1).split(' , ')) {
        if (/^-?\d+$/.test(inner)) number = apply(number, Number(inner));
        else symbols.push(inner);
      }
    } else symbols.push(part);
  }
  if (symbols.length === 0) return number;
  if (symbols.length === 1 && number === neutral) return symbols[0] as string;
  const all = number === neutral ? symbols.sort() : [String(number), ...symbols.sort()];
  return `(${sign} ${all.join(' , ')})`;
}

/** product(dividend) / product(divisor), where the divisor's factors are found in the dividend; undefined otherwise. */
export function quotient(dividend: readonly Dim[], divisor: readonly Dim[]): Dim | undefined {
  const rest = [...dividend];
  let number = 1;
  for (const factor of divisor) {
    if (typeof factor === 'number') number *= factor;
    else {
      const at = rest.indexOf(factor);
      if (at < 0) return undefined;
      rest.splice(at, 1);
    }
  }
  const symbols = rest.filter((dim) => typeof dim === 'string');
  const numbers = rest.filter((dim) => typeof dim === 'number').reduce((a, b) => a * b, 1);
  return number > 0 && numbers % number === 0 ? product([...symbols, numbers / number]) : undefined;
}

/** The shape that two shapes broadcast to. `fresh(i)` names a size that cannot be told. */
export function broadcast(a: readonly Dim[], b: readonly Dim[], fresh: (i: number) => Dim): Dim[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const left = a[i - rank + a.length] ?? 1;
    const right = b[i - rank + b.length] ?? 1;
    if (left === right || right === 1) return left;
    if (left === 1) return right;
    // Of a known size other than 1 and an unknown one, the result has the known size.
    if (typeof left === 'number') return left;
    return typeof right === 'number' ? right : fresh(i);
  });
}
