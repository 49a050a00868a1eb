import { loadNative, type NativeSessionOptions } from './native.js';
import { toPath } from './session-options.js';

/**
 * Where `device: 'auto'` computes. The provider's GPU kernels are for float16: of a model that computes in float32 only SparseMatMul
 * would run there, each with copies to the GPU and back. Such a model takes the CPU, and a warning of the process says so.
 * @param model path, URL or bytes of the model.
 * @param options flattened options of the session; returned as they are, or with the device settled.
 * @param offersGpu whether the provider offers a GPU to sessions.
 */
export async function settleDevice(
  model: string | Uint8Array,
  options: NativeSessionOptions,
  offersGpu: (deviceId: number) => boolean = loadNative().offersGpu,
): Promise<NativeSessionOptions> {
  const given = new Map(options.providerOptions);
  if ((given.get('device') ?? 'auto') !== 'auto') return options;
  if (!offersGpu(Number(given.get('device_id') ?? 0))) return options;
  if (await mayComputeInFloat16(model)) return options;
  process.emitWarning(
    "The model computes in float32, of which a GPU would run SparseMatMul alone: the session runs on the CPU. Export it with '--dtype float16' to use the GPU",
    { type: 'FlashLLMNotice', code: 'FLASHLLM_FLOAT32', detail: "{ name: 'flashllm', device: 'cpu' } silences this" },
  );
  return {
    ...options,
    providerOptions: [...options.providerOptions.filter(([name]) => name !== 'device'), ['device', 'cpu']],
  };
}

/** Of a model that cannot be read: true, so that ONNX Runtime says what is wrong with it. */
async function mayComputeInFloat16(model: string | Uint8Array): Promise<boolean> {
  const { scanModel } = await import('../graph-passes/onnx/scan.js');
  const { decodeModel } = await import('../graph-passes/onnx/proto.js');
  const { computesInFloat16 } = await import('../graph-passes/graph/float16.js');
  try {
    return computesInFloat16(decodeModel(typeof model === 'string' ? scanModel(toPath(model)).bytes : model));
  } catch {
    return true;
  }
}
