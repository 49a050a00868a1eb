import { fileURLToPath } from 'node:url';
import type { InferenceSession } from 'onnxruntime-node';
import { type FlashLLMOptions, optionTable } from './ep-options.js';
import { InvalidOptionError } from './errors.js';
import type { NativeRunOptions, NativeSessionOptions } from './native.js';
import './onnxruntime-types.js';

const graphOptimizationLevels = { disabled: 0, basic: 1, extended: 2, layout: 3, all: 99 };
/** What the provider's option `threads` takes, which gets this number. Before it is asked, ONNX Runtime starts all threads: 2,000 take a minute. */
const MOST_THREADS = 1024;
const executionModes = { sequential: 0, parallel: 1 };

/** Run options of sessions of this backend: those of onnxruntime-node, and `signal`, which ends the run early. */
export type FlashLLMRunOptions = InferenceSession.RunOptions;

/**
 * Checks session options and flattens them for the addon.
 * @param quiet whether sessions that do not say otherwise log errors only: ONNX Runtime warns at each creation that some nodes run
 * on its own CPU provider, which is what this provider means to leave there.
 * @throws InvalidOptionError
 */
export function flattenSessionOptions(options: InferenceSession.SessionOptions, quiet = true): NativeSessionOptions {
  const flat: NativeSessionOptions = {
    freeDimensionOverrides: Object.entries(options.freeDimensionOverrides ?? {}).map(([name, value]) => [
      name,
      String(integer(`freeDimensionOverrides.${name}`, value, 0)),
    ]),
    config: flattenConfig(options.extra, 'extra'),
    providerOptions: providerOptions(options),
    externalData: externalData(options.externalData),
  };
  const set = <K extends keyof NativeSessionOptions>(key: K, value: NativeSessionOptions[K] | undefined): void => {
    if (value !== undefined) flat[key] = value;
  };
  set('intraOpNumThreads', optionalInteger('intraOpNumThreads', options.intraOpNumThreads, 0, MOST_THREADS));
  set('interOpNumThreads', optionalInteger('interOpNumThreads', options.interOpNumThreads, 0));
  set(
    'graphOptimizationLevel',
    oneOf('graphOptimizationLevel', options.graphOptimizationLevel, graphOptimizationLevels),
  );
  set('executionMode', oneOf('executionMode', options.executionMode, executionModes));
  set('enableCpuMemArena', flag('enableCpuMemArena', options.enableCpuMemArena));
  set('enableMemPattern', flag('enableMemPattern', options.enableMemPattern));
  set('logId', text('logId', options.logId));
  const logsUnclaimed = flat.providerOptions.some(([name, value]) => name === 'log_unclaimed' && value === '1');
  const severity = optionalInteger('logSeverityLevel', options.logSeverityLevel, 0, 4);
  set('logSeverityLevel', severity ?? (quiet && !logsUnclaimed ? 3 : undefined));
  set('logVerbosityLevel', optionalInteger('logVerbosityLevel', options.logVerbosityLevel, 0));
  set('optimizedModelFilePath', text('optimizedModelFilePath', options.optimizedModelFilePath));
  if (flag('enableProfiling', options.enableProfiling)) {
    set('profileFilePrefix', text('profileFilePrefix', options.profileFilePrefix) ?? 'onnxruntime_profile_');
  }
  return flat;
}

/** Checks run options and flattens them for the addon. @throws InvalidOptionError */
export function flattenRunOptions(options: InferenceSession.RunOptions): NativeRunOptions {
  const severity = optionalInteger('logSeverityLevel', options.logSeverityLevel, 0, 4);
  const verbosity = optionalInteger('logVerbosityLevel', options.logVerbosityLevel, 0);
  const tag = text('tag', options.tag);
  return {
    config: flattenConfig(options.extra, 'extra'),
    terminate: flag('terminate', options.terminate) === 1,
    ...(severity === undefined ? {} : { logSeverityLevel: severity }),
    ...(verbosity === undefined ? {} : { logVerbosityLevel: verbosity }),
    ...(tag === undefined ? {} : { tag }),
  };
}

/** Nested objects become keys joined by dots, as in the other bindings: { session: { x: 1 } } is "session.x" = "1". */
function flattenConfig(extra: unknown, name: string, prefix = ''): [string, string][] {
  if (extra === undefined) return [];
  if (typeof extra !== 'object' || extra === null) throw invalid(name, 'an object', extra);
  return Object.entries(extra).flatMap(([key, value]): [string, string][] => {
    const path = `${prefix}${key}`;
    if (typeof value === 'string' || typeof value === 'number') return [[path, String(value)]];
    if (typeof value === 'boolean') return [[path, value ? '1' : '0']];
    return flattenConfig(value, `${name}.${key}`, `${path}.`);
  });
}

function providerOptions(options: InferenceSession.SessionOptions): [string, string][] {
  const given = (options.executionProviders ?? []).filter(
    (provider) => typeof provider === 'object' && provider.name === 'flashllm',
  );
  const pairs = (given as unknown as Record<string, unknown>[]).flatMap((provider) => {
    return Object.entries(provider)
      .filter(([key, value]) => key !== 'name' && value !== undefined)
      .map(([key, value]) => providerOption(key, value));
  });
  // ONNX Runtime does not tell a provider how many threads its pool has.
  if (options.intraOpNumThreads && !pairs.some(([name]) => name === 'threads')) {
    pairs.push(['threads', String(options.intraOpNumThreads)]);
  }
  return pairs;
}

function providerOption(key: string, value: unknown): [string, string] {
  const row = optionTable.find((option) => option.key === key);
  if (row === undefined) {
    throw new InvalidOptionError(
      `Unknown option '${key}' of provider flashllm; expected one of: ${optionTable.map((o) => o.key).join(', ')}`,
    );
  }
  if (row.type === 'bool') return [row.name, String(flag(key, value))];
  if (row.type === 'int') return [row.name, String(integer(key, value, 0))];
  if (typeof value !== 'string' || !row.values.includes(value))
    throw invalid(key, `one of ${row.values.join(', ')}`, value);
  return [row.name, value];
}

function externalData(
  files: InferenceSession.SessionOptions['externalData'],
): { path: string; data: Uint8Array | string }[] {
  if (files === undefined) return [];
  if (!Array.isArray(files)) throw invalid('externalData', 'an array', files);
  return files.map((file: unknown, i) => {
    const name = `externalData[${i}]`;
    // A path alone names a file beside the model, which ONNX Runtime finds by itself where the model is a path.
    if (typeof file === 'string') return { path: baseName(file), data: toPath(file) };
    if (typeof file !== 'object' || file === null) throw invalid(name, 'a path or { path, data }', file);
    const { path, data } = file as { path?: unknown; data?: unknown };
    if (typeof path !== 'string') throw invalid(`${name}.path`, 'a string', path);
    if (typeof data === 'string') return { path, data: toPath(data) };
    if (data instanceof Uint8Array) return { path, data };
    if (data instanceof ArrayBuffer || data instanceof SharedArrayBuffer) return { path, data: new Uint8Array(data) };
    throw invalid(`${name}.data`, 'a Uint8Array, an ArrayBuffer or the path of a file', data);
  });
}

/** A path as it is, a file's URL as a path. */
export function toPath(fileOrUrl: string | URL): string {
  return typeof fileOrUrl !== 'string' || fileOrUrl.startsWith('file://') ? fileURLToPath(fileOrUrl) : fileOrUrl;
}

function baseName(path: string): string {
  return toPath(path).split('/').at(-1) ?? path;
}

/**
 * Which outputs stay on the GPU, of a location for all or of one for each output by name.
 * @throws InvalidOptionError for a location other than cpu, cpu-pinned and gpu-buffer.
 */
export function outputLocations(
  location: InferenceSession.SessionOptions['preferredOutputLocation'],
): (output: string) => boolean {
  if (location === undefined) return () => false;
  const all = typeof location === 'string' ? [location] : Object.values(location);
  const other = all.find((one) => !['cpu', 'cpu-pinned', 'gpu-buffer'].includes(one));
  if (other !== undefined) throw invalid('preferredOutputLocation', "'cpu' or 'gpu-buffer'", other);
  if (typeof location === 'string') return () => location === 'gpu-buffer';
  return (output) => location[output] === 'gpu-buffer';
}

function oneOf<T extends Record<string, number>>(name: string, value: unknown, values: T): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'string' || !Object.hasOwn(values, value))
    throw invalid(name, `one of ${Object.keys(values).join(', ')}`, value);
  return values[value];
}

function flag(name: string, value: unknown): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value !== 'boolean') throw invalid(name, 'true or false', value);
  return value ? 1 : 0;
}

function text(name: string, value: unknown): string | undefined {
  if (value !== undefined && typeof value !== 'string') throw invalid(name, 'a string', value);
  return value;
}

function optionalInteger(name: string, value: unknown, min: number, max?: number): number | undefined {
  return value === undefined ? undefined : integer(name, value, min, max);
}

function integer(name: string, value: unknown, min: number, max = 2 ** 31 - 1): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw invalid(name, `an integer from ${min} to ${max}`, value);
  }
  return value;
}

function invalid(name: string, expected: string, found: unknown): InvalidOptionError {
  const shown =
    typeof found === 'string'
      ? `'${found}'`
      : typeof found === 'object' && found !== null
        ? 'an object'
        : String(found);
  return new InvalidOptionError(`Expected ${expected} for ${name} but received ${shown}`);
}

export type { FlashLLMOptions };
