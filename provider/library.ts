import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const packageName = 'onnxruntime-ep-flashllm';
const require = createRequire(import.meta.url);

/** `<platform>-<arch>`, as folders and platform packages are named. */
export const platform = `${process.platform}-${process.arch}`;

/** Names of the two binaries. */
export const binaries = { addon: 'flashllm_node.node', provider: 'libonnxruntime_ep_flashllm.so' } as const;

/** The folder of this package's package.json. */
export function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    const file = join(folder, 'package.json');
    if (existsSync(file) && JSON.parse(readFileSync(file, 'utf8')).name === packageName) return folder;
    const parent = dirname(folder);
    if (parent === folder) throw new Error(`${packageName}: package.json was not found above ${import.meta.url}`);
    folder = parent;
  }
}

/** Where the binaries may lie, best first: a folder of the user's own, what was built here, the platform's package. */
export function binaryFolders(): string[] {
  const folders: string[] = [];
  if (process.env.FLASHLLM_NATIVE_DIR) folders.push(process.env.FLASHLLM_NATIVE_DIR);
  folders.push(join(packageRoot(), 'native', platform));
  try {
    folders.push(dirname(require.resolve(`${packageName}-${platform}/package.json`)));
  } catch {
    // The platform's package is optional.
  }
  return folders;
}

/** The first folder that holds both binaries, or undefined. */
export function findBinaries(): string | undefined {
  return binaryFolders().find((folder) => Object.values(binaries).every((name) => existsSync(join(folder, name))));
}

/** The version of this package. */
export function packageVersion(): string {
  return JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')).version;
}

/**
 * The absolute path of the plugin execution provider library, to register it in another language binding of ONNX Runtime.
 * @throws Error where the package has no binaries for this platform.
 */
export function getLibraryPath(): string {
  const folder = findBinaries();
  if (folder === undefined) {
    throw new Error(
      `${binaries.provider} was not found in ${binaryFolders().join(', ')}. Run: npm rebuild ${packageName}`,
    );
  }
  return join(folder, binaries.provider);
}

/** The name under which ONNX Runtime lists the execution provider and its devices. */
export function getEpName(): string {
  return 'FlashLLMExecutionProvider';
}

/** ONNX Runtime's library inside the onnxruntime-node package whose main module is `onnxruntimeNode` (default: our peer). */
export function ortLibraryPath(onnxruntimeNode: string = require.resolve('onnxruntime-node')): string {
  const folder = join(dirname(onnxruntimeNode), '..', 'bin', 'napi-v6', process.platform, process.arch);
  return join(folder, 'libonnxruntime.so.1');
}
