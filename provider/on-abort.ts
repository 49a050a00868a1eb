const aborters = new WeakMap<AbortSignal, { actions: Set<() => void>; listener: () => void }>();

/**
 * Calls `action` when the signal aborts, until the returned function is called. One listener serves all actions of a signal: many runs
 * and texts share one in a server, and Node warns of a leak from eleven listeners on.
 */
export function onAbort(signal: AbortSignal, action: () => void): () => void {
  let aborter = aborters.get(signal);
  if (aborter === undefined) {
    const actions = new Set<() => void>();
    const listener = () => {
      for (const one of actions) one();
    };
    aborter = { actions, listener };
    aborters.set(signal, aborter);
  }
  const { actions, listener } = aborter;
  if (actions.size === 0) signal.addEventListener('abort', listener);
  actions.add(action);
  return () => {
    actions.delete(action);
    if (actions.size === 0) signal.removeEventListener('abort', listener);
  };
}
