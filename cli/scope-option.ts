/** `--scope`, of every command that prunes. */
import { type Command, Option } from 'commander';
import { type PruneMethod, pruneScopes } from '../models/pruning/index.js';
import { refuseStray } from './usage.js';

/** The only method that keeps the share of zeros in a choice of places. */
const METHOD: PruneMethod = 'magnitude';

export function scopeOption(): Option {
  return new Option('--scope <name>', `with --method ${METHOD}: what the share of zeros is kept in`)
    .choices([...pruneScopes])
    .default(pruneScopes[0]);
}

/** Ends the command with exit code 2 where the option is given and the method knows no scope. */
export function refuseStrayScope(command: Command, method: PruneMethod): void {
  if (method !== METHOD) refuseStray(command, ['scope'], `goes with --method ${METHOD} only, not ${method}`);
}
