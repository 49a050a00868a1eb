import { open } from 'node:fs/promises';
import { ModelError } from '../graph-passes/onnx/errors.js';
import { loadModel } from '../graph-passes/onnx/load.js';

/**
 * Finds out whether all files of a model may be read: what ONNX Runtime says of one that it may not read does not name it.
 * @throws Error for a file that is there and must not be read. What else is wrong with a model, who opens it says.
 */
export async function requireReadable(model: string): Promise<void> {
  if (!(await opens(model, model))) return;
  for (const file of dataFiles(model)) await opens(file, model);
}

function dataFiles(model: string): readonly string[] {
  try {
    return loadModel(model).files;
  } catch (error) {
    if (error instanceof ModelError) return [];
    throw error;
  }
}

async function opens(file: string, model: string): Promise<boolean> {
  try {
    await (await open(file)).close();
    return true;
  } catch (cause) {
    if (!['EACCES', 'EPERM'].includes((cause as NodeJS.ErrnoException).code ?? '')) return false;
    throw new Error(
      `cannot read ${file}${file === model ? '' : `, which holds data of the model ${model}`}: permission denied; let this user read it (chmod), or name another model`,
      { cause },
    );
  }
}
