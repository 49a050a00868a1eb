import { Tensor } from 'onnxruntime-node';
import { allocateOnDevice, copyRowOnDevice, type DeviceType, rowsOnDevice } from '../../provider/device-tensor.js';
import type { CacheMemory } from './cache-memory.js';

/**
 * Memory of a GPU, for sessions of the flashllm provider that compute there: keys and values never leave it.
 *
 * @param deviceId which GPU, as the provider's option `deviceId`.
 */
export function deviceMemory(deviceId = 0): CacheMemory {
  return {
    records: true,
    // Below a thousand columns a GPU expands weights for too few products (docs/dense-matmul.md).
    prefillTokens: 1024,
    place: (host) => ({ host, device: allocateOnDevice(Tensor, host.type as DeviceType, host.dims, deviceId) }),
    allocate: (type, dims) => allocateOnDevice(Tensor, type, dims, deviceId),
    rows: (tensor, first, count) => rowsOnDevice(Tensor, tensor, first, count),
    copyRow: copyRowOnDevice,
    free: (tensor) => tensor.dispose(),
  };
}
