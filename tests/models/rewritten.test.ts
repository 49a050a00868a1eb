// The whole way: opt-14m exported, rewritten, and run through an ordinary session and through transformers.js.
// One test at a time: sessions whose threads wait actively slow one another down.
import { readFile, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { env, pipeline } from '@huggingface/transformers';
import test from 'ava';
import { copyCompanions } from '../../graph-passes/companions.js';
import { rewriteModel, verifyModels } from '../../graph-passes/index.js';
import { exportOpt } from '../../models/opt/export.js';
import type { OptDtype } from '../../models/opt/graph-context.js';
import { measurePerplexity } from '../../models/perplexity.js';
import { shippedHeldOutText, shippedModel } from '../../models/shipped.js';
import { openTextModel } from '../../models/text-model.js';
import '../../provider/index.js';
import { temporaryFolder } from './support/checkpoints.js';

interface Case {
  prompt: string;
  input_ids: number[];
  greedy_ids: number[];
  greedy_text: string;
}

const { cases } = JSON.parse(await readFile(join(shippedModel(), 'reference.json'), 'utf8')) as { cases: Case[] };
const providers = { ours: ['flashllm', 'cpu'], stock: ['cpu'] };
let root: string;

test.before(async () => {
  root = await temporaryFolder();
});

test.after.always(() => rm(root, { recursive: true }));

/** Exports and rewrites; a sparsity of 0 packs every linear as it is. */
async function rewritten(name: string, dtype: OptDtype, sparsity: number): Promise<{ dense: string; sparse: string }> {
  const [dense, sparse] = [join(root, `${name}-dense`), join(root, name)];
  const { modelPath } = await exportOpt(shippedModel(), { output: dense, dtype });
  const prune =
    sparsity > 0 ? { prune: { method: 'magnitude', sparsity, scope: 'layer' } as const } : { minSparsity: 0 };
  const report = await rewriteModel({ input: modelPath, output: join(sparse, 'model.onnx'), ...prune });
  await copyCompanions(dense, sparse);
  const kept = report.layers.filter((layer) => layer.decision === 'sparse').length;
  if (kept < 24) throw new Error(`only ${kept} layers became sparse`);
  return { dense, sparse };
}

for (const [where, executionProviders] of Object.entries(providers)) {
  test.serial(
    `nothing pruned, in a session with ${executionProviders}: greedy text is the reference's, alone and in a batch`,
    async (t) => {
      const { sparse } = await rewritten(`lossless-${where}`, 'float32', 0);
      const { generator, session } = await openTextModel(sparse, { executionProviders });
      for (const { prompt, ...expected } of cases) {
        const [result] = await generator.generate([prompt], {
          maxNewTokens: expected.greedy_ids.length - expected.input_ids.length,
        });
        t.deepEqual(result?.tokenIds, expected.greedy_ids);
        t.is(prompt + result?.text, expected.greedy_text);
      }
      const batch = await generator.generate(
        cases.map(({ prompt }) => prompt),
        { maxNewTokens: 40 },
      );
      batch.forEach((result, i) => {
        const all = cases[i]?.greedy_ids.slice(0, result.tokenIds.length) as number[];
        t.deepEqual(result.tokenIds.slice(0, all.length), all);
      });
      await session.release();
    },
  );
}

for (const dtype of ['float32', 'float16'] as const) {
  test.serial(`half of the weights pruned, ${dtype}: our session gives the perplexity of the stock one`, async (t) => {
    const { sparse, dense } = await rewritten(`half-${dtype}`, dtype, 0.5);
    const text = (await readFile(shippedHeldOutText(), 'utf8')).slice(0, 12000);
    const perplexityOf = async (folder: string, executionProviders: string[]) => {
      const { tokenizer, decoder, session } = await openTextModel(folder, { executionProviders });
      const { perplexity } = await measurePerplexity(decoder, tokenizer.encode(text));
      await session.release();
      return perplexity;
    };
    const ours = await perplexityOf(sparse, providers.ours);
    const stock = await perplexityOf(sparse, providers.stock);
    const unpruned = await perplexityOf(dense, providers.stock);
    t.true(Math.abs(ours / stock - 1) < (dtype === 'float32' ? 1e-5 : 2e-3), `${ours} and ${stock}`);
    t.true(unpruned < ours && ours < 4 * unpruned, `${unpruned} dense, ${ours} pruned`);
  });
}

test.serial('verify judges the likeliest tokens of float16 models by the logits that they have', async (t) => {
  for (const [sparsity, agrees] of [
    [0, true],
    [0.95, false],
  ] as const) {
    const { dense, sparse } = await rewritten(`verified-${sparsity}`, 'float16', sparsity);
    const { runs } = await verifyModels({ original: join(dense, 'model.onnx'), rewritten: join(sparse, 'model.onnx') });
    const choice = runs[0]?.outputs.find(({ name }) => name === 'likeliest');
    t.like(choice, { type: 'int64', shape: [1, 5], tolerance: 2e-2, ok: agrees });
  }
});

test.serial('a rewritten model runs in transformers.js, with the provider named in session_options', async (t) => {
  const { sparse } = await rewritten('transformers-js', 'float32', 0);
  env.allowRemoteModels = false;
  env.useFSCache = false;
  env.localModelPath = dirname(sparse);
  const options = { dtype: 'fp32', subfolder: '', session_options: { executionProviders: providers.ours } } as const;
  const generate = await pipeline('text-generation', basename(sparse), options);
  for (const { prompt, greedy_ids, input_ids, greedy_text } of cases) {
    if (prompt === '') continue; // the pipeline wants a text
    const [result] = (await generate(prompt, {
      max_new_tokens: greedy_ids.length - input_ids.length,
      do_sample: false,
    })) as { generated_text: string }[];
    // The pipeline takes the space before punctuation away, as the tokenizer's configuration lets it.
    const cleaned = (text: string | undefined) => text?.replace(/ (?=[.,!?])/g, '');
    t.is(cleaned(result?.generated_text), cleaned(greedy_text));
  }
  await generate.dispose();
});
