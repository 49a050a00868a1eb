/** Checks of the options that callers give: JavaScript lets through what TypeScript would not, and a typing error must not change a model. */
import { InvalidOptionError } from '../provider/errors.js';
import { describe, nearestName } from '../provider/wording.js';

/** Says what is wrong with a value that was given: what was expected; undefined where nothing is wrong. */
export interface Check {
  (value: unknown): string | undefined;
  /** Checks of the value's own members, and which of them must be there. */
  readonly members?: Checks;
  readonly required?: readonly string[];
}

export type Checks = Readonly<Record<string, Check>>;

const expect =
  (expected: string, fits: (value: unknown) => boolean): Check =>
  (value) =>
    fits(value) ? undefined : expected;

const isNumber = (value: unknown, least: number, most: number): boolean =>
  typeof value === 'number' && value >= least && value <= most;

export const flag = expect('true or false', (value) => typeof value === 'boolean');
export const callback = expect('a function', (value) => typeof value === 'function');
export const filePath = expect('a path', (value) => typeof value === 'string' && value !== '');
export const share = expect('a number from 0 to 1', (value) => isNumber(value, 0, 1));
export const positive = expect('a number of at least 0', (value) => isNumber(value, 0, Number.MAX_VALUE));
export const globs = expect(
  'a list of texts, none of them empty',
  (value) => Array.isArray(value) && value.every((glob) => typeof glob === 'string' && glob !== ''),
);
/** Not by its class: a signal may be of another realm. */
export const abortSignal = expect(
  'an AbortSignal',
  (value) => isObject(value) && typeof value.aborted === 'boolean' && typeof value.throwIfAborted === 'function',
);

export function wholeNumber(least: number): Check {
  return expect(
    `a whole number of at least ${least}`,
    (value) => Number.isSafeInteger(value) && (value as number) >= least,
  );
}

export function oneOf(choices: readonly string[]): Check {
  return expect(`one of ${choices.join(', ')}`, (value) => choices.includes(value as string));
}

/** An object of options. */
export function options(members: Checks, required: readonly string[] = []): Check {
  return Object.assign(expect('an object', isObject), { members, required });
}

/**
 * @param caller the function that was called.
 * @param required names of the options that must be given.
 * @throws InvalidOptionError for the first option that is unknown, missing, or not what it should be.
 */
export function checkOptions(caller: string, given: unknown, checks: Checks, required: readonly string[]): void {
  const fault = isObject(given)
    ? memberFault(given, options(checks, required), '', checks)
    : `the options are ${describe(given)}, expected an object`;
  if (fault !== undefined) throw new InvalidOptionError(`${caller}: ${fault}`);
}

/**
 * @param prefix of the members' names: `prune.`
 * @param all checks of the outermost options.
 */
function memberFault(
  given: Readonly<Record<string, unknown>>,
  { members = {}, required = [] }: Check,
  prefix: string,
  all: Checks,
): string | undefined {
  const stray = Object.keys(given).find((name) => !Object.hasOwn(members, name));
  if (stray !== undefined) return unknownOption(`${prefix}${stray}`, all);
  for (const [name, check] of Object.entries(members)) {
    const value = given[name];
    if (value === undefined && !required.includes(name)) continue;
    const expected = check(value);
    const path = `${prefix}${name}`;
    if (expected !== undefined) return `${path} is ${describe(value)}, expected ${expected}`;
    const fault = check.members && memberFault(value as Record<string, unknown>, check, `${path}.`, all);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

function unknownOption(path: string, checks: Checks): string {
  const known = paths(checks);
  const near = nearestName(path, known);
  const advice = near === undefined ? `expected some of ${known.join(', ')}` : `the nearest is ${near}`;
  return `there is no option ${path}; ${advice}`;
}

/** Names of all options, those in objects too: `prune.sparsity`. */
function paths(checks: Checks): string[] {
  return Object.entries(checks).flatMap(([name, { members }]) => [
    name,
    ...(members ? paths(members).map((member) => `${name}.${member}`) : []),
  ]);
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
