import "fake-indexeddb/auto";
import { afterEach, describe, expect, test, vi } from "vitest";
import { idbStore } from "../src/kv/idb";
import { memoryStore } from "../src/kv/memory";
import type { Store } from "../src/kv/store";

let names = 0;

/** Every store passes the whole suite. A new one costs a line here. */
const stores: [string, () => Promise<Store>][] = [
  ["memory", async () => memoryStore()],
  ["IndexedDB", () => idbStore(`test-${++names}`)],
];

describe.each(stores)("%s keeps the store's law", (_, make) => {
  test("1: transactions that write run one after another", async () => {
    const store = await make();
    const add = () =>
      store.transaction("readwrite", async (tx) => {
        const n = ((await tx.get("n")) as number | undefined) ?? 0;
        tx.put("n", n + 1);
      });
    await Promise.all(Array.from({ length: 20 }, add));
    expect(await store.transaction("readonly", (tx) => tx.get("n"))).toBe(20);
  });

  test("2: a transaction whose body throws leaves nothing, and rejects with what it threw", async () => {
    const store = await make();
    await store.transaction("readwrite", async (tx) => tx.put("a", 1));
    const failing = store.transaction("readwrite", async (tx) => {
      tx.put("a", 2);
      tx.delete("a");
      await tx.get("a");
      throw new RangeError("no");
    });
    await expect(failing).rejects.toThrow(RangeError);
    expect(await store.transaction("readonly", (tx) => tx.get("a"))).toBe(1);
    // And the next one works.
    await store.transaction("readwrite", async (tx) => tx.put("a", 3));
    expect(await store.transaction("readonly", (tx) => tx.get("a"))).toBe(3);
  });

  test("2: a value that cannot be kept fails the whole transaction", async () => {
    const store = await make();
    const failing = store.transaction("readwrite", async (tx) => {
      tx.put("a", 1);
      tx.put("b", () => 1);
    });
    await expect(failing).rejects.toThrow();
    expect(await store.transaction("readonly", (tx) => tx.get("a"))).toBeUndefined();
  });

  test("5: values come back as they went in, and nothing is shared", async () => {
    const store = await make();
    const value = { list: [1, "\0", null], ...JSON.parse('{"__proto__": 1}') };
    await store.transaction("readwrite", async (tx) => tx.put("a", value));
    value.list.push(2);
    const read = (await store.transaction("readonly", (tx) => tx.get("a"))) as typeof value;
    expect(read.list).toEqual([1, "\0", null]);
    expect(Object.hasOwn(read, "__proto__")).toBe(true);
    read.list.push(3);
    expect(await store.transaction("readonly", (tx) => tx.get("a"))).toHaveProperty(
      "list.length",
      3,
    );
  });

  test("ranges are in the order of their keys; they can be deleted", async () => {
    const store = await make();
    await store.transaction("readwrite", async (tx) => {
      for (const key of ["c/2", "c/10", "c/1", "d", "b"]) tx.put(key, key);
      expect(await tx.range("c/", "c/\uffff")).toEqual(["c/1", "c/10", "c/2"]);
      tx.deleteRange("c/1", "c/2");
      tx.delete("b");
      tx.delete("none");
    });
    const all = await store.transaction("readonly", (tx) => tx.range("", "\uffff"));
    expect(all).toEqual(["c/2", "d"]);
  });
});

describe("IndexedDB", () => {
  afterEach(() => void vi.restoreAllMocks());

  test("B1: every transaction is strict", async () => {
    const begun = vi.spyOn(IDBDatabase.prototype, "transaction");
    const store = await idbStore(`test-${++names}`);
    await store.transaction("readwrite", async (tx) => tx.put("a", 1));
    await store.transaction("readonly", (tx) => tx.get("a"));
    const ours = begun.mock.calls.filter(([, mode]) => String(mode).startsWith("read"));
    expect(ours).toEqual([
      ["kv", "readwrite", { durability: "strict" }],
      ["kv", "readonly", { durability: "strict" }],
    ]);
  });

  test("opens again after its connection was taken away", async () => {
    const name = `test-${++names}`;
    const store = await idbStore(name);
    await store.transaction("readwrite", async (tx) => tx.put("a", 1));
    // Another page wants to delete the database: this one makes way.
    await new Promise<void>((resolve) => {
      indexedDB.deleteDatabase(name).onsuccess = () => resolve();
    });
    await store.transaction("readwrite", async (tx) => tx.put("b", 2));
    expect(await store.transaction("readonly", (tx) => tx.range("", "\uffff"))).toEqual([2]);
  });
});
