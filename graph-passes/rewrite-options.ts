/** What the options of a rewrite may be. */
import { abortSignal, type Checks, callback, filePath, flag, globs, oneOf, options, share } from './options.js';

/** Also those of an inspection, which takes the same options and has no use for some. */
export const rewriteChecks: Checks = {
  input: filePath,
  output: filePath,
  minSparsity: share,
  include: globs,
  exclude: globs,
  weights: oneOf(['auto', 'float16', 'bfloat16', 'float32']),
  prune: options(
    {
      method: oneOf(['magnitude']),
      sparsity: share,
      scope: oneOf(['layer', 'row']),
    },
    ['method', 'sparsity', 'scope'],
  ),
  portable: flag,
  onProgress: callback,
  signal: abortSignal,
  trace: callback,
};

/** Those of a folder's models, too. */
export const folderChecks: Checks = { ...rewriteChecks, onModel: callback };
