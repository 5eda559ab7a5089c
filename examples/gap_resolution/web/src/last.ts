/**
 * The document that was open last on this device. In IndexedDB: what `localStorage` was told a
 * second ago is gone when the power goes now.
 */

const KEY = "last";

function open(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("gap-resolution", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("kept");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function use(
  mode: IDBTransactionMode,
  ask: (store: IDBObjectStore) => IDBRequest,
): Promise<unknown> {
  let database: IDBDatabase | undefined;
  try {
    database = await open();
    const transaction = database.transaction("kept", mode, { durability: "strict" });
    const request = ask(transaction.objectStore("kept"));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    return request.result;
  } catch {
    // A browser that remembers nothing: the address still names the document.
    return undefined;
  } finally {
    database?.close();
  }
}

export async function remembered(): Promise<string | null> {
  const last = await use("readonly", (store) => store.get(KEY));
  return typeof last === "string" ? last : null;
}

export async function remember(id: string | null): Promise<void> {
  await use("readwrite", (store) => (id === null ? store.delete(KEY) : store.put(id, KEY)));
}
