/** How a command is used: what its help says of all of them, and wrong usage, which ends it with exit code 2 before it has done anything. */
import { statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { type Command, Help, type HelpConfiguration } from 'commander';

/** Help that says which options must be given. */
export const helpConfiguration: HelpConfiguration = {
  optionDescription(option) {
    const description = Help.prototype.optionDescription.call(this, option);
    return option.mandatory ? `${description} (required)` : description;
  },
};

/** Below the help of every command. */
export const EXIT_CODES = `
Exit codes of every command: 0 done, 1 failed, 2 wrong usage,
130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (a closed terminal).`;

/** Ends the command. @param message what is wrong with the command line, and what to write instead. */
export function refuse(command: Command, message: string): never {
  return command.error(`error: ${message}`, { exitCode: 2 });
}

/**
 * Ends the command if an option is on the command line that would be ignored.
 * @param names of the options, as the command's action gets them.
 * @param why follows the option's flag.
 */
export function refuseStray(command: Command, names: readonly string[], why: string): void {
  const stray = command.options.find(
    (option) =>
      names.includes(option.attributeName()) && command.getOptionValueSource(option.attributeName()) === 'cli',
  );
  if (stray) refuse(command, `${stray.long} ${why}`);
}

/** Ends the command if an output that is to be a folder is called as a model's file would be, unless there is such a folder. */
export function refuseModelFile(command: Command, output: string): void {
  if (!/\.onnx$/i.test(output) || statSync(output, { throwIfNoEntry: false })?.isDirectory()) return;
  const folder = join(dirname(output), basename(output).slice(0, -'.onnx'.length) || 'output');
  refuse(
    command,
    `-o ${output} is a file's name, expected a folder's: give -o ${folder}; models in it get their names by themselves`,
  );
}
