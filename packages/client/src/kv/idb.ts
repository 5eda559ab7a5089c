import { outdated } from "../core/errors.js";
import type { Store } from "./store.js";

/**
 * A store in IndexedDB. Every transaction that writes is `strict`: its promise resolves only when
 * the browser has flushed it to the disk. Rejects where the browser gives no database,
 * and with `outdated` where a newer release has made another one of it.
 */
export async function idbStore(name: string): Promise<Store> {
  let db: IDBDatabase | null = null;

  const open = () => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => void request.result.createObjectStore("kv");
    return answer(request).then(
      (opened) => {
        // A newer release of the application must not wait for this page, and the browser may take
        // the connection away (its data cleared, its backend restarted): the next one opens it anew.
        opened.onversionchange = opened.onclose = () => {
          opened.close();
          db = null;
        };
        return opened;
      },
      (reason) => {
        throw (reason as Error).name === "VersionError" ? outdated() : reason;
      },
    );
  };

  db = await open();
  return {
    durable: true,
    async transaction(mode, body) {
      db ??= await open();
      const tx = db.transaction("kv", mode, { durability: "strict" });
      const rows = tx.objectStore("kv");
      const done = new Promise<void>((resolve, reject) => {
        tx.oncomplete = () => resolve();
        // Each request's failure aborts the transaction.
        tx.onabort = () => reject(tx.error ?? new Error("the transaction was aborted"));
      });
      // Its rejection is answered below; until then it is not an unhandled one.
      done.catch(() => {});
      try {
        const result = await body({
          get: (key) => answer(rows.get(key)),
          range: (from, to) => answer(rows.getAll(between(from, to))),
          put: (key, value) => void rows.put(value, key),
          delete: (key) => void rows.delete(key),
          deleteRange: (from, to) => void rows.delete(between(from, to)),
        });
        await done;
        return result;
      } catch (error) {
        try {
          tx.abort();
        } catch {
          // It has ended already.
        }
        throw error;
      }
    },
    close: () => db?.close(),
  };
}

function answer<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function between(from: string, to: string): IDBKeyRange {
  return IDBKeyRange.bound(from, to, false, true);
}
