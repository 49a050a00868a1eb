/** Parsers of options' values: each gives the value or says what was expected, which ends the command with exit code 2. */
import { InvalidArgumentError, Option } from 'commander';

/** A parser of whole numbers from `least` on, to `most` where one is given. */
export function wholeNumber(least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isSafeInteger(value) || value < least || value > most)
      throw new InvalidArgumentError(
        `Expected a whole number ${most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`}.`,
      );
    return value;
  };
}

/** What the provider's option takes. Many more are no faster anywhere, and a machine may have no place for their stacks. */
const MOST_THREADS = 1024;

/** How many threads to compute with. */
export const threadCount = wholeNumber(1, MOST_THREADS);

/** How many sequences at once; there is a list of their places. */
export const batchSize = wholeNumber(1, 4096);

/** A timer's milliseconds are a signed integer of 32 bits; a longer one would end at once. */
const MOST_TIMER_SECONDS = Math.floor((2 ** 31 - 1) / 1000);

/** How long to wait. */
export const timerSeconds = wholeNumber(0, MOST_TIMER_SECONDS);

/** How long something may take; 0 would say that there is no limit to some, that there is no time to others. */
export const timeoutSeconds = wholeNumber(1, MOST_TIMER_SECONDS);

/** Any number. */
export function finiteNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('Expected a number.');
  return value;
}

/** A parser of numbers from `low` to `high`. */
export function numberWithin(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = finiteNumber(text);
    if (value < low || value > high) throw new InvalidArgumentError(`Expected a number from ${low} to ${high}.`);
    return value;
  };
}

/** A share of a whole: `0.5` or `50%`. */
export function share(text: string): number {
  const value = parseShare(text);
  if (!(value >= 0 && value <= 1)) throw new InvalidArgumentError('Expected a share from 0 to 1, such as 0.5 or 50%.');
  return value;
}

/** As `share`, of what something must be left of. */
export function shareBelowOne(text: string): number {
  const value = parseShare(text);
  if (!(value >= 0 && value < 1))
    throw new InvalidArgumentError('Expected a share from 0 to below 1, such as 0.5 or 50%.');
  return value;
}

/**
 * A parser of texts that are not blank. A variable that is not set gives an empty one: as a path that would be the folder that the command runs
 * in.
 */
function filled(expected: string): (text: string) => string {
  return (text) => {
    if (text.trim() === '') throw new InvalidArgumentError(`Expected ${expected}.`);
    return text;
  };
}

/** A folder's path. */
export const folderPath = filled('a folder');

/** A file's path. */
export const filePath = filled('a file');

/** The path of a model, which is a file or a folder. */
export const modelPath = filled('a model, as a file or a folder');

/** What something is called. */
export const nameText = filled('a name');

/** Where a server listens. */
export const hostAddress = filled('an address');

/** An option whose values, none of them empty, are collected in a list. */
export function repeatable(flags: string, description: string): Option {
  return new Option(flags, description).argParser(collect).default([], 'none');
}

/** Collects origins as browsers send them; anything else would match none. */
export function origins(text: string, list: string[]): string[] {
  // Pages that are files have the origin null.
  if (text === '*' || text === 'null') return [...list, text];
  const origin = URL.canParse(text) ? new URL(text).origin : undefined;
  if (origin !== text)
    throw new InvalidArgumentError(
      `Expected an origin without a path, such as ${origin === undefined || origin === 'null' ? 'http://localhost:3000' : origin}, or *.`,
    );
  return [...list, text];
}

function collect(value: string, list: string[]): string[] {
  if (value === '') throw new InvalidArgumentError('Expected some text.');
  return [...list, value];
}

/** NaN of no number. */
function parseShare(text: string): number {
  const percent = text.endsWith('%');
  const number = percent ? text.slice(0, -1) : text;
  return number.trim() === '' ? Number.NaN : Number(number) / (percent ? 100 : 1);
}
