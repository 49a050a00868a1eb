/** `npm run bench:chart`: draws docs/spmm-<gpu>.svg from the newest results of bench/spmm for each GPU, or from the files that are named. */
import { readdir, readFile, rename, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { speedupChart } from './figure.js';
import type { Peers, SpmmResults } from './speedups.js';

const resultsFolder = 'bench/results';

/** The newest `<date>-<gpu>-spmm.json` of each GPU. */
async function newestFiles(): Promise<string[]> {
  const newest = new Map<string, string>();
  for (const name of (await readdir(resultsFolder)).sort()) {
    const gpu = gpuOf(name);
    if (gpu !== undefined) newest.set(gpu, join(resultsFolder, name));
  }
  return [...newest.values()];
}

function gpuOf(name: string): string | undefined {
  return /^\d{4}-\d{2}-\d{2}-(\w+)-spmm\.json$/.exec(name)?.[1];
}

const named = process.argv.slice(2);
const files = named.length > 0 ? named : await newestFiles();
if (files.length === 0) {
  throw new Error(
    `${resultsFolder} holds no <date>-<gpu>-spmm.json. Run \`npm run bench:gpu\` on a machine with a GPU.`,
  );
}
const peers = JSON.parse(await readFile('bench/spmm/peers.json', 'utf8')) as Peers;
for (const file of files) {
  const gpu = gpuOf(basename(file));
  if (gpu === undefined) {
    throw new Error(`${file}: expected a file named <date>-<gpu>-spmm.json. Its name says which chart it makes.`);
  }
  const chart = join('docs', `spmm-${gpu}.svg`);
  await writeFile(`${chart}.part`, await speedupChart(JSON.parse(await readFile(file, 'utf8')) as SpmmResults, peers));
  await rename(`${chart}.part`, chart);
  console.log(`${chart} from ${file}`);
}
