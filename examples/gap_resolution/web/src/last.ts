/**
 * What this device keeps beside the sessions: which document was open last, and the tokens of those
 * that were opened. In IndexedDB: what `localStorage` or a cookie was told a second ago is gone
 * when the power goes now.
 */

const LAST = "last";

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
  return (await text(LAST)) ?? null;
}

export async function remember(id: string | null): Promise<void> {
  await use("readwrite", (store) => (id === null ? store.delete(LAST) : store.put(id, LAST)));
}

export async function keepToken(id: string, token: string): Promise<void> {
  await use("readwrite", (store) => store.put(token, `token:${id}`));
}

export async function tokenOf(id: string): Promise<string | undefined> {
  return text(`token:${id}`);
}

async function text(name: string): Promise<string | undefined> {
  const found: unknown = await use("readonly", (store) => store.get(name));
  return typeof found === "string" ? found : undefined;
}
