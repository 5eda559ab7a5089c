import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import { outdated } from "../core/errors.js";
import type { Store } from "./store.js";

interface Schema extends DBSchema {
  kv: { key: string; value: unknown };
}

/**
 * A store in IndexedDB. Every transaction that writes is `strict`: its promise resolves only when
 * the browser has flushed it to the disk. Rejects where the browser gives no database,
 * and with `outdated` where a newer release has made another one of it.
 */
export async function idbStore(name: string): Promise<Store> {
  let db: IDBPDatabase<Schema> | null = null;

  const open = async (): Promise<IDBPDatabase<Schema>> => {
    const opened = await openDB<Schema>(name, 1, {
      upgrade: (fresh) => void fresh.createObjectStore("kv"),
      // A newer release of the application must not wait for this page.
      blocking: () => {
        opened.close();
        db = null;
      },
      // The browser may take the connection away (its data cleared, its backend restarted).
      terminated: () => {
        db = null;
      },
    }).catch((reason) => {
      throw (reason as Error).name === "VersionError" ? outdated() : reason;
    });
    opened.addEventListener("close", () => {
      db = null;
    });
    return opened;
  };

  db = await open();
  return {
    durable: true,
    async transaction(mode, body) {
      db ??= await open();
      const tx = db.transaction("kv", mode, { durability: "strict" });
      const rows = tx.store;
      const done = tx.done;
      // Its rejection is answered below; until then it is not an unhandled one.
      done.catch(() => {});
      try {
        const result = await body({
          get: (key) => rows.get(key),
          range: (from, to) => rows.getAll(IDBKeyRange.bound(from, to, false, true)),
          // Each request's failure aborts the transaction, and `done` says so.
          put: (key, value) => void rows.put?.(value, key).catch(() => {}),
          delete: (key) => void rows.delete?.(key).catch(() => {}),
          deleteRange: (from, to) =>
            void rows.delete?.(IDBKeyRange.bound(from, to, false, true)).catch(() => {}),
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
