/**
 * What this package adds to the types of onnxruntime-node. They are named by that module: through onnxruntime-common, where they are defined,
 * they are not found by who does not depend on it.
 */
import type { FlashLLMOptions } from './ep-options.js';

declare module 'onnxruntime-node' {
  namespace InferenceSession {
    interface ExecutionProviderOptionMap {
      flashllm: FlashLLMOptions;
    }
    interface RunOptions {
      /**
       * Of sessions of provider flashllm: when it aborts, the run ends soon (between two nodes of the graph) and its promise rejects with the
       * signal's reason.
       */
      readonly signal?: AbortSignal | undefined;
    }
  }
}
