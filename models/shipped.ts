import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** A file or folder of the package: it lies one up from models/ in the sources, two from dist/models/. */
export function packageFile(path: string): string {
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

/**
 * The shipped model with 80 % zeros in its linears together, pruned while it was trained (models/training/finetune.py), exported and rewritten: a
 * folder for `openTextModel`.
 */
export function shippedSparseModel(): string {
  return packageFile('models/opt-14m-80');
}

/** About 220 kB of public-domain prose that the shipped model was not trained on (models/data/README.md). */
export function shippedHeldOutText(): string {
  return packageFile('models/data/held-out.txt');
}

/** About 630 kB of text of the kinds that the shipped model was trained on: what pruning calibrates on where no text is given. */
export function shippedCalibrationText(): string {
  return packageFile('models/data/calibration.txt');
}

/** About 140 kB of the same kinds of text, none of it in the calibration text. */
export function shippedInDomainText(): string {
  return packageFile('models/data/held-out-in-domain.txt');
}
