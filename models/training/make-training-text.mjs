// Makes the text that finetune.py trains on, out of the same sources as models/data/make-in-domain.mjs, whole this time:
//   node make-training-text.mjs <unpacked datasets-sotu> <unpacked datasets-moby-dick> <_sources> <output>
// One document after the other, with a line of `</s>` between them. Left out: every address, chapter and page that
// held-out-in-domain.txt has a piece of.
import { writeFileSync } from 'node:fs';
import { heldOut, plainText, sourceFiles } from '../data/in-domain-sources.mjs';

const [sotu, mobyDick, python, output] = process.argv.slice(2);
const documents = sourceFiles(sotu, mobyDick, python).flatMap((list) =>
  list.filter((_, i) => i % heldOut.modulus !== heldOut.remainder).map(plainText),
);
writeFileSync(output, documents.join('\n</s>\n'));
