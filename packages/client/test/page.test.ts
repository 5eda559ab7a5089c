import "fake-indexeddb/auto";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { connect } from "../src";
import { browserEnvironment } from "../src/env";
import { idbStore } from "../src/kv/idb";
import { Profile, until } from "./support/page";
import { FakeServer } from "./support/server";

interface Doc {
  title: string;
  n: number;
}

let server: FakeServer;
let profile: Profile;

beforeEach(() => {
  server = new FakeServer();
  server.create("s", { title: "", n: 0 });
  profile = new Profile(server);
});

const state = () => server.session("s").state as unknown as Doc;

async function open(options: Parameters<Profile["open"]>[0] = {}) {
  const page = profile.open<Doc>(options);
  await page.ready;
  await until(() => page.session.status.connection === "online");
  return page;
}

describe("tabs", () => {
  test("a frozen leader hands over as soon as somebody types, and steps back when it wakes up", async () => {
    const leader = await open();
    const follower = await open();
    leader.session.inc("/n");
    await until(() => follower.session.status.saved && follower.session.state.n === 1);
    leader.freeze();
    const started = performance.now();
    await follower.session.inc("/n").acknowledged;
    expect(performance.now() - started).toBeGreaterThan(600);
    expect(server.online).toBe(1);
    leader.thaw();
    await leader.session.inc("/n").acknowledged;
    await until(() => [leader, follower].every(({ session }) => session.state.n === 3));
    expect(state().n).toBe(3);
    expect(server.online).toBe(1);
    expect(server.changes).toHaveLength(3);
  });

  test("a frozen leader hands over to a tab that is shown", async () => {
    const leader = await open();
    const follower = await open();
    leader.freeze();
    const hellos = server.hellos.length;
    follower.moment("hidden");
    follower.moment("visible");
    await until(() => server.hellos.length > hellos);
  });

  test("a hidden tab takes nothing from a leader that is only slow", async () => {
    const leader = await open();
    const follower = await open();
    follower.moment("hidden");
    leader.freeze();
    const hellos = server.hellos.length;
    await follower.session.inc("/n").stored;
    await new Promise((resolve) => setTimeout(resolve, 800));
    expect(server.hellos).toHaveLength(hellos);
    leader.thaw();
    await until(() => follower.session.status.saved);
  });

  test("into the back/forward cache and out: the lock goes to others meanwhile, nothing is missed", async () => {
    const one = await open();
    const two = await open();
    one.moment("hide");
    await two.session.inc("/n").acknowledged;
    expect(server.online).toBe(1);
    two.kill();
    one.moment("show");
    await until(() => one.session.state.n === 1 && one.session.status.connection === "online");
    await one.session.inc("/n").acknowledged;
    expect(state().n).toBe(2);
  });
});

describe("when the page goes", () => {
  test("in the midst of its write, the tab that leads looks at what it wrote, and sends it", async () => {
    const leader = await open();
    const follower = await open();
    const begun = vi.spyOn(IDBDatabase.prototype, "transaction");
    follower.session.set("/title", "last words");
    // Its transaction has begun; the page is gone before it hears how that ended.
    while (begun.mock.calls.length === 0) await null;
    begun.mockRestore();
    expect(follower.session.status.savedOnDevice).toBe(false);
    follower.moment("hide");
    follower.kill();
    await until(() => state().title === "last words");
    expect(leader.session.state.title).toBe("last words");
  });

  test("what the server has not decided is sent so that it outlives the page, in 64 KiB", async () => {
    const page = await open({ token: "secret" });
    server.mute = true;
    await page.session.set("/title", "é".repeat(20_000)).stored;
    await page.session.inc("/n").stored;
    await page.session.set("/title", "é".repeat(20_000)).stored;
    page.moment("hidden");
    page.moment("hide");
    expect(server.posts).toHaveLength(1);
    const [{ url, init } = { url: new URL("x:"), init: {} }] = server.posts;
    expect(url.pathname).toBe("/app/api/v0/session/s/changes");
    expect(init).toMatchObject({
      method: "POST",
      keepalive: true,
      headers: { "Content-Type": "application/json", Authorization: "Bearer secret" },
    });
    expect(new TextEncoder().encode(String(init.body)).length).toBeLessThan(64 * 1024);
    expect(JSON.parse(String(init.body))).toMatchObject({
      client_id: page.session.export().client_id,
      device: { id: page.session.deviceId },
      changes: [{ seq: 1 }, { seq: 2 }],
    });
  });

  test("with everything decided, nothing is sent", async () => {
    const page = await open();
    await page.session.inc("/n").acknowledged;
    page.moment("hidden");
    page.moment("hide");
    expect(server.posts).toEqual([]);
  });

  test("the browser asks only while something is on neither the server nor the disk", async () => {
    const page = await open();
    server.kill();
    const change = page.session.inc("/n");
    expect(page.guards).toEqual([true]);
    await change.stored;
    expect(page.guards).toEqual([true, false]);
    server.up = true;
    await change.acknowledged;
    expect(page.guards).toEqual([true, false]);
  });

  test("it asks until the server has it where nothing can be stored", async () => {
    const page = await open({ store: broken() });
    server.mute = true;
    const change = page.session.inc("/n");
    expect(await change.stored).toBe(false);
    expect(page.guards).toEqual([true]);
    await page.session.close();
    expect(page.guards.at(-1)).toBe(false);
  });
});

function broken() {
  return { durable: true, transaction: () => Promise.reject(new Error("full")), close() {} };
}

describe("what is stored", () => {
  test("the browser is asked to keep it once there is something, and its verdict is in the status", async () => {
    const persist = vi.fn(async () => true);
    const session = connect<Doc>({
      url: "http://server.test/app",
      session: "s",
      env: {
        ...browserEnvironment(),
        WebSocket: server.socketClass(),
        fetch: server.fetch,
        locks: undefined,
        persist,
      },
    });
    await session.ready;
    await until(() => session.status.connection === "online");
    expect(persist).not.toHaveBeenCalled();
    expect(session.status.persisted).toBeNull();
    await session.inc("/n").stored;
    await until(() => session.status.persisted === true);
    await session.inc("/n").stored;
    expect(persist).toHaveBeenCalledTimes(1);
    await session.close();
  });

  test("every transaction that writes is strict, and only its completion calls a change saved", async () => {
    const opened: [mode: string, durability: string | undefined][] = [];
    const early: boolean[] = [];
    let completed = 0;
    let saved = () => false;
    const real = IDBDatabase.prototype.transaction;
    const spy = vi.spyOn(IDBDatabase.prototype, "transaction").mockImplementation(function (
      this: IDBDatabase,
      ...[names, mode = "readonly", options]: Parameters<typeof real>
    ) {
      const tx = real.call(this, names, mode, options);
      opened.push([mode, options?.durability]);
      if (mode !== "readwrite") return tx;
      tx.addEventListener("complete", () => completed++);
      const put = IDBObjectStore.prototype.put;
      const rows = tx.objectStore("kv");
      vi.spyOn(rows, "put").mockImplementation((...row) => {
        const request = put.apply(rows, row);
        request.addEventListener("success", () => {
          // The request has succeeded, the transaction takes some turns more.
          let turns = 5;
          const linger = () => {
            early.push(saved());
            if (--turns > 0) rows.get("nothing").onsuccess = linger;
          };
          linger();
        });
        return request;
      });
      vi.spyOn(tx, "objectStore").mockReturnValue(rows);
      return tx;
    });
    const page = await open();
    await until(() => page.session.status.savedOnDevice);
    saved = () => page.session.status.savedOnDevice;
    early.length = completed = 0;
    // Many keystrokes at once are one transaction.
    server.mute = true;
    for (let i = 0; i < 100; i++) page.session.inc("/n");
    expect(page.session.status.savedOnDevice).toBe(false);
    await until(() => page.session.status.savedOnDevice);
    expect(completed).toBe(1);
    expect(early.length).toBeGreaterThan(100);
    expect(new Set(early)).toEqual(new Set([false]));
    expect(new Set(opened.filter(([mode]) => mode === "readwrite").map(([, how]) => how))).toEqual(
      new Set(["strict"]),
    );
    spy.mockRestore();
  });

  test("by a newer release: it is left alone, and the page goes on in memory", async () => {
    const before = await open();
    await before.session.inc("/n").acknowledged;
    const store = await idbStore(profile.name);
    const rows = () => store.transaction("readonly", (tx) => tx.range("", "\uffff"));
    await until(() => before.session.status.saved);
    await store.transaction("readwrite", async (tx) => {
      const key = `${encodeURIComponent("http://server.test/app")}//s/meta`;
      tx.put(key, { ...((await tx.get(key)) as object), format: 2, rev: "what newer ones have" });
    });
    const kept = await rows();
    // A tab that is open, and one that is opened then.
    const told = vi.fn();
    before.session.addEventListener("upgradeRequired", told);
    await before.session.inc("/n").acknowledged;
    expect(told).toHaveBeenCalledTimes(1);
    expect(before.session.status).toMatchObject({ storage: "memory", readOnly: false });
    expect(before.session.status.error?.message).toMatch(/reload/);
    const after = profile.open<Doc>();
    after.session.addEventListener("upgradeRequired", told);
    await after.ready;
    await after.session.inc("/n").acknowledged;
    expect(told).toHaveBeenCalledTimes(2);
    expect(state().n).toBe(3);
    expect(await rows()).toEqual(kept);
    store.close();
  });
});
