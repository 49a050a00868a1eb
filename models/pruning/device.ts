import type { NativePruning, PrunerHandle, PrunerShape } from '../../provider/native-pruning.js';
import { ModelFolderError } from '../errors.js';

/** `auto`: the first NVIDIA GPU where there is one that can be used, else the CPU. `cuda:1`: the second GPU. */
export type PruneDeviceName = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** Reads the name of a device. @throws ModelFolderError `USAGE`. */
export function parsePruneDevice(text: string): PruneDeviceName {
  if (/^(auto|cpu|cuda(:\d{1,3})?)$/.test(text)) return text as PruneDeviceName;
  throw new ModelFolderError('USAGE', `device is ${JSON.stringify(text)}, expected auto, cpu, cuda or cuda:<number>`);
}

/** A pruner on the device. @throws ModelFolderError `USAGE` where a GPU was asked for by name and cannot be used: the message says why. */
export function createPruner(
  native: NativePruning,
  name: PruneDeviceName,
  shape: Omit<PrunerShape, 'device'>,
): PrunerHandle {
  const device = parsePruneDevice(name);
  if (device === 'cpu') return native.createPruner({ ...shape, device: 'cpu' });
  try {
    return native.createPruner({ ...shape, device: { cuda: Number(device.split(':')[1] ?? 0) } });
  } catch (cause) {
    if (device === 'auto') return native.createPruner({ ...shape, device: 'cpu' });
    throw new ModelFolderError('USAGE', `cannot prune on ${device}: ${(cause as Error).message}`, { cause });
  }
}
