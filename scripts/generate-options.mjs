// Writes what depends on the table of provider options, provider/ep/options.json: the C++ table, the TypeScript type and the page
// of documentation. `node scripts/generate-options.mjs --check` only reports whether they are up to date (exit code 1 if not).
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const source = 'provider/ep/options.json';
const options = JSON.parse(readFileSync(root + source, 'utf8'));
const notice = `Generated from ${source} by scripts/generate-options.mjs.`;

const cxxString = (text) => JSON.stringify(text);
const camelCase = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
// Texts name options as ONNX Runtime does; a Node user knows them by the other name.
const named = options.map(({ name }) => name).filter((name) => name !== camelCase(name));
const spelled = (text, both) => text.replace(new RegExp(`\\b(${named.join('|')})\\b`, 'g'), both);
const inComment = (text) => spelled(text, (name) => `${camelCase(name)} (elsewhere ${name})`);
const inMarkdown = (text) => spelled(text, (name) => `\`${camelCase(name)}\` (\`${name}\`)`);
const defaultOf = (option) => (option.type === 'bool' ? (option.default === '1' ? 'true' : 'false') : option.default);

function cxxTable() {
  const rows = options.map((option) => {
    const values = `{${(option.values ?? []).map(cxxString).join(', ')}}`;
    const fields = [
      cxxString(option.name),
      `OptionType::k${option.type[0].toUpperCase()}${option.type.slice(1)}`,
      cxxString(option.default),
    ];
    return `    {${fields.join(', ')}, ${option.min ?? 0}, ${option.max ?? 0}, ${values}},`;
  });
  return `// ${notice}\n// {name, type, default, min, max, values}\n${rows.join('\n')}\n`;
}

function comment({ help, ranges = [], note }, standard) {
  const head = `${help} Default: ${standard}.`;
  if (ranges.length === 0) return `  /** ${inComment(head)} */`;
  const rows = ranges.map((range) => `- ${range.values}: ${range.for} ${range.gain} ${range.cost}`);
  const lines = [head, '', ...rows, '', note];
  return `  /**\n${lines.map((line) => `   * ${inComment(line)}`.trimEnd()).join('\n')}\n   */`;
}

function typeScript() {
  const type = (option) => {
    if (option.type === 'enum') return option.values.map((value) => `'${value}'`).join(' | ');
    return option.type === 'bool' ? 'boolean' : 'number';
  };
  const members = options.map((option) => {
    const standard = option.type === 'enum' ? `'${option.default}'` : defaultOf(option);
    return `${comment(option, standard)}\n  readonly ${camelCase(option.name)}?: ${type(option)};`;
  });
  const rows = options.map((option) => {
    const values = option.values ? `[${option.values.map((value) => `'${value}'`).join(', ')}]` : '[]';
    return `  { key: '${camelCase(option.name)}', name: '${option.name}', type: '${option.type}', values: ${values} },`;
  });
  return `// ${notice}

/** Options of the flashllm execution provider: \`executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu']\`. */
export interface FlashLLMOptions {
  readonly name: 'flashllm';
${members.join('\n')}
}

/** How each option is named in TypeScript (key) and in ONNX Runtime (name). */
export const optionTable: readonly {
  readonly key: Exclude<keyof FlashLLMOptions, 'name'>;
  readonly name: string;
  readonly type: 'enum' | 'int' | 'bool';
  readonly values: readonly string[];
}[] = [
${rows.join('\n')}
];
`;
}

function documentation() {
  const rows = options.map((option) => {
    const values =
      option.values?.join(', ') ?? (option.type === 'bool' ? 'true, false (1, 0)' : `${option.min} – ${option.max}`);
    return `| \`${camelCase(option.name)}\` | \`${option.name}\` | ${values} | ${defaultOf(option)} | ${inMarkdown(option.help)}${option.ranges ? ` [By range](#${option.name.replaceAll('_', '-')}-by-range).` : ''} |`;
  });
  const tables = options.filter(({ ranges }) => ranges).map(rangeTable);
  return `<!-- ${notice} -->
# Options of the execution provider

In Node: \`executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu']\`. In other languages the names of the second column go
into the provider options of \`SessionOptionsAppendExecutionProvider_V2\`. An unknown name or a bad value is an error. Texts give
both names, that in Node first.

| in Node | elsewhere | values | default | |
|---|---|---|---|---|
${rows.join('\n')}
${tables.join('')}`;
}

function rangeTable({ name, ranges, note }) {
  const rows = ranges.map((range) => `| ${[range.values, range.for, range.gain, range.cost].join(' | ')} |`);
  return `
## ${name.replaceAll('_', ' ').replace(/^./, (first) => first.toUpperCase())} by range

What to give as \`${camelCase(name)}\`, \`${name}\` elsewhere:

| | for | gain | cost |
|---|---|---|---|
${inMarkdown(rows.join('\n'))}

${inMarkdown(note)}
`;
}

const outputs = {
  'provider/ep/options.inc': cxxTable(),
  'provider/ep-options.ts': typeScript(),
  'docs/options.md': documentation(),
};
const stale = Object.entries(outputs).filter(([path, text]) => {
  try {
    return readFileSync(root + path, 'utf8') !== text;
  } catch {
    return true;
  }
});
if (process.argv.includes('--check')) {
  for (const [path] of stale)
    console.error(`${path} is not up to date with ${source}: run node scripts/generate-options.mjs`);
  process.exitCode = stale.length > 0 ? 1 : 0;
} else {
  for (const [path, text] of stale) writeFileSync(root + path, text);
}
