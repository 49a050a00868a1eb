// A GPU as generation sees it, on the CPU: memory of its own, recorded runs that are started while the one before is under way.
import { type InferenceSession, Tensor } from 'onnxruntime-node';
import { Decoder } from '../../../models/decoder.js';
import { type CacheMemory, hostMemory } from '../../../models/generation/cache-memory.js';
import type { Mirrored } from '../../../provider/native-call.js';
import type { Feeds, Fetches, PreparedRun } from '../../../provider/prepared-run.js';

const MOST_STARTS = 2;

const memory: CacheMemory = {
  ...hostMemory,
  records: true,
  place: (host) => ({
    host,
    device: new Tensor(host.type as 'int64', (host.data as BigInt64Array).slice(), host.dims),
  }),
};

/** A decoder whose steps are queued. `most` of `counts` is how many starts of a run were under way at once. */
export function queuedDecoder(session: InferenceSession): { decoder: Decoder; counts: { most: number } } {
  const counts = { most: 0 };
  const decoder = Object.create(new Decoder(session, memory), {
    prepare: { value: (feeds: Feeds, fetches: Fetches) => queuedRun(session, feeds, fetches, counts) },
  }) as Decoder;
  return { decoder, counts };
}

function queuedRun(session: InferenceSession, feeds: Feeds, fetches: Fetches, counts: { most: number }): PreparedRun {
  let under = 0;
  let last: Promise<unknown> = Promise.resolve();
  const mirrors = (places: Feeds | Fetches, chosen?: readonly string[]) =>
    Object.entries(places).flatMap(([name, place]) =>
      'host' in place && (chosen?.includes(name) ?? true) ? [place] : [],
    );
  const start = async (copied?: readonly string[], fed?: readonly string[]) => {
    if (under === MOST_STARTS) throw new Error('the prepared run is under way');
    counts.most = Math.max(counts.most, ++under);
    const up = mirrors(feeds, fed).map(({ host, device }) => ({ device, data: (host.data as BigInt64Array).slice() }));
    const down = mirrors(fetches, copied);
    const done = last.then(async () => {
      for (const { device, data } of up) (device.data as BigInt64Array).set(data);
      await session.run(onDevice(feeds), onDevice(fetches));
      return down.map(({ device }) => (device.data as BigInt64Array).slice());
    });
    last = done.catch(() => {});
    try {
      const results = await done;
      for (const [i, { host }] of down.entries()) (host.data as BigInt64Array).set(results[i] as BigInt64Array);
    } finally {
      under--;
    }
  };
  return { recorded: true, start, dispose: async () => void (await last) } as unknown as PreparedRun;
}

function onDevice(places: Readonly<Record<string, Tensor | Mirrored>>): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(places).map(([name, place]) => [name, 'host' in place ? place.device : place]),
  );
}
