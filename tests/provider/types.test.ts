// The types of the built package (dist/, by `npm run build:ts`) as a strict project of a user's sees them.
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import ts from 'typescript';

const root = join(import.meta.dirname, '../..');
const project = mkdtempSync(join(tmpdir(), 'flashllm-types-'));
test.after.always(() => rmSync(project, { recursive: true, force: true }));

const inSession = `
const session = await ort.InferenceSession.create('model.onnx', {
  executionProviders: [{ name: 'flashllm', device: 'cpu', expectedBatch: 1 }, 'cpu'],
});
await ort.InferenceSession.create('model.onnx', { executionProviders: ['flashllm', 'cpu'] });
await session.run({}, { signal: AbortSignal.timeout(1000), tag: 'mine' });
await session.run({}, ['logits'], { signal: undefined });
// @ts-expect-error: no such option
await ort.InferenceSession.create('model.onnx', { executionProviders: [{ name: 'flashllm', devise: 'cpu' }] });
// @ts-expect-error: no such device
await ort.InferenceSession.create('model.onnx', { executionProviders: [{ name: 'flashllm', device: 'gpu' }] });
// @ts-expect-error: no signal
await session.run({}, ['logits'], { signal: 'soon' });
`;

const files = {
  'root.ts': `import * as ort from 'onnxruntime-node';
import 'onnxruntime-ep-flashllm';
${inSession}`,
  'models.ts': `import { openTextModel } from 'onnxruntime-ep-flashllm/models';
const model = await openTextModel('folder', { executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu'] });
await model.session.run({}, { signal: AbortSignal.timeout(1000) });
// @ts-expect-error: no such option
await openTextModel('folder', { executionProviders: [{ name: 'flashllm', devise: 'cpu' }] });
await using other = await openTextModel(new URL('file:///folder'));
const text: string = (await other.generator.generate('Call me')).text;
const texts: string[] = (await other.generator.generate(['Call me', [2, 5]])).map((one) => one.text);
`,
  'names.ts': `import type { DeviceUse, Feeds, Fetches, FlashLLMRunOptions, PreparedRun } from 'onnxruntime-ep-flashllm';
import type { InputSizes, LayerReport, PruneSpec, Trace, TraceEvent, ValueTypeChoice } from 'onnxruntime-ep-flashllm/graph-passes';
import type { GeneratorConfig, LayerReport as PrunedLayer, LinearReport, PruneDeviceName, PruneScope } from 'onnxruntime-ep-flashllm/models';
export type All = [
  DeviceUse, Feeds, Fetches, FlashLLMRunOptions, PreparedRun, InputSizes, LayerReport, PruneSpec, Trace, TraceEvent, ValueTypeChoice,
  GeneratorConfig, PrunedLayer, LinearReport, PruneDeviceName, PruneScope,
];
`,
};

test.before(() => {
  const modules = join(project, 'node_modules');
  mkdirSync(join(modules, '@types'), { recursive: true });
  for (const name of ['onnxruntime-node', '@types/node'])
    symlinkSync(join(root, 'node_modules', name), join(modules, name));
  symlinkSync(root, join(modules, 'onnxruntime-ep-flashllm'));
  writeFileSync(join(project, 'package.json'), JSON.stringify({ type: 'module' }));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(project, name), text);
});

const { Bundler, Node16, NodeNext } = ts.ModuleResolutionKind;
for (const [name, moduleResolution, module] of [
  ['nodenext', NodeNext, ts.ModuleKind.NodeNext],
  ['node16', Node16, ts.ModuleKind.Node16],
  ['bundler', Bundler, ts.ModuleKind.ESNext],
] as const) {
  test(`options of the provider and a run's signal have types, and misspelt ones are refused: ${name}`, (t) => {
    for (const file of Object.keys(files)) {
      // Each alone: what one imports would serve the other.
      const program = ts.createProgram([join(project, file)], {
        ...{ module, moduleResolution, target: ts.ScriptTarget.ES2022, types: ['node'] },
        ...{ strict: true, exactOptionalPropertyTypes: true, noEmit: true, skipLibCheck: true },
      });
      const found = ts.getPreEmitDiagnostics(program).map(({ start, messageText }) => {
        return `${file}, byte ${start}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`;
      });
      t.deepEqual(found, []);
    }
  });
}
