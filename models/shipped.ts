import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** Folder of the package: one up from models/ in the sources, two from dist/models/. */
function packageFile(path: string): string {
  const inSources = fileURLToPath(new URL(`../${path}`, import.meta.url));
  return existsSync(inSources) ? inSources : fileURLToPath(new URL(`../../${path}`, import.meta.url));
}

/**
 * The trained OPT of 14 million parameters that ships with the package: a Hugging Face folder, float16 safetensors in
 * three shards.
 */
export function shippedModel(): string {
  return packageFile('models/opt-14m');
}

/** About 220 kB of public-domain prose that the shipped model was not trained on (models/data/README.md). */
export function shippedHeldOutText(): string {
  return packageFile('models/data/held-out.txt');
}
