/** Checks of what a caller hands over. Types say the same, to who has them. */
import { describe, nearestName } from '../provider/wording.js';
import { ModelFolderError } from './errors.js';

/** The error of an argument that is not what it should be. */
export function unexpected(name: string, found: unknown, expected: string): ModelFolderError {
  return new ModelFolderError('USAGE', `${name} is ${describe(found)}, expected ${expected}`);
}

/** Names of all options that a type has: the compiler sees to it that none is left out. */
export function namesOf<T>(names: Record<keyof T, true>): readonly string[] {
  return Object.keys(names);
}

/**
 * Refuses options that are no object or have a name that is none of the known: mistyped most likely, or another library's.
 * @param of what takes the options.
 * @throws ModelFolderError `USAGE` that says which name may be meant.
 */
export function requireNames(of: string, options: unknown, known: readonly string[]): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options))
    throw unexpected(`what is given as options of ${of}`, options, `an object with any of ${known.join(', ')}`);
  const wrong = Object.entries(options).find(([name, value]) => value !== undefined && !known.includes(name))?.[0];
  if (wrong === undefined) return;
  const near = nearestName(wrong, known);
  const meant = near === undefined ? '' : `, which may be meant for ${near}`;
  throw new ModelFolderError(
    'USAGE',
    `unknown option '${wrong}' of ${of}${meant}; expected one of: ${known.join(', ')}`,
  );
}

/** @throws ModelFolderError `USAGE` for what is neither undefined nor an AbortSignal, of this realm or another. */
export function requireSignal(signal: unknown): void {
  if (signal === undefined) return;
  const { aborted, addEventListener, throwIfAborted } = (signal ?? {}) as Partial<Record<keyof AbortSignal, unknown>>;
  if (typeof aborted !== 'boolean' || typeof addEventListener !== 'function' || typeof throwIfAborted !== 'function')
    throw unexpected('signal', signal, "an AbortSignal, such as an AbortController's signal");
}

/** @throws ModelFolderError `USAGE` for what is no text, or an empty one. */
export function requireText(name: string, value: unknown, expected: string): void {
  if (typeof value !== 'string' || value === '') throw unexpected(name, value, expected);
}

/** @throws ModelFolderError `USAGE` for a value that is given and none of the choices. */
export function requireChoice(name: string, value: unknown, choices: readonly string[]): void {
  if (value !== undefined && !choices.includes(value as string))
    throw unexpected(name, value, `one of ${choices.join(', ')}`);
}

/** @throws ModelFolderError `USAGE` for a value that is given and neither true nor false. */
export function requireFlag(name: string, value: unknown): void {
  if (value !== undefined && typeof value !== 'boolean') throw unexpected(name, value, 'true or false');
}
