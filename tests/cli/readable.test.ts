// Files of a model that this user must not read. The superuser may read all, so that others do it where the tests are root's.
import { chmodSync, cpSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'ava';
import { verifyCommand } from '../../cli/commands/verify.js';
import { openModel } from '../../cli/generation-options.js';
import { loadWhole } from '../../graph-passes/onnx/load.js';
import { shippedSparseModel } from '../../models/shipped.js';
import { tempFolder } from '../graph-passes/test-model.js';

const NOBODY = 65534;

/** Runs `work` as a user who is bound by the files' modes. */
async function bound(work: () => Promise<unknown>): Promise<void> {
  if (process.geteuid?.() !== 0) {
    await work();
    return;
  }
  process.seteuid?.(NOBODY);
  try {
    await work();
  } finally {
    process.seteuid?.(0);
  }
}

test.serial('a file that must not be read is named, and what to do', async (t) => {
  const folder = join(tempFolder(), 'model');
  for (const above of [dirname(folder), dirname(dirname(folder))]) chmodSync(above, 0o755);
  cpSync(shippedSparseModel(), folder, { recursive: true });
  const [model, data] = [join(folder, 'model.onnx'), join(folder, 'model.onnx_data')];
  await bound(async () => t.deepEqual(loadWhole(model, 'the model', 'make it').files, [model, data]));
  chmodSync(data, 0);
  const message = `cannot read ${data}, which holds data of the model ${model}: permission denied; let this user read it (chmod), or name another model`;
  await bound(async () => {
    await t.throwsAsync(openModel(folder, {}), { message });
    await t.throwsAsync(verifyCommand().parseAsync([model, model], { from: 'user' }), { message });
  });
  chmodSync(model, 0);
  await bound(() =>
    t.throwsAsync(openModel(folder, {}), {
      message: `cannot read ${model}: permission denied; let this user read it (chmod), or name another model`,
    }),
  );
});
