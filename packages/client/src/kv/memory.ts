import type { Store, Transaction } from "./store.js";

/** A store that lives as long as the page, for browsers that give no other. */
export function memoryStore(): Store {
  let rows = new Map<string, unknown>();
  let last: Promise<unknown> = Promise.resolve();

  const run = async <T>(body: (tx: Transaction) => Promise<T>): Promise<T> => {
    const draft = new Map(rows);
    const within = (from: string, to: string) =>
      [...draft.keys()].filter((key) => from <= key && key < to).sort();
    const result = await body({
      get: async (key) => structuredClone(draft.get(key)),
      range: async (from, to) => within(from, to).map((key) => structuredClone(draft.get(key))),
      put: (key, value) => draft.set(key, structuredClone(value)),
      delete: (key) => draft.delete(key),
      deleteRange: (from, to) => {
        for (const key of within(from, to)) draft.delete(key);
      },
    });
    rows = draft;
    return result;
  };

  return {
    durable: false,
    transaction(_mode, body) {
      const result = last.then(() => run(body));
      last = result.catch(() => undefined);
      return result;
    },
    close() {},
  };
}
