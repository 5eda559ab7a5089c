import "fake-indexeddb/auto";
import { beforeEach, describe, expect, expectTypeOf, test, vi } from "vitest";
import { connect, memoryStore, OpError, ReattachError, type Session } from "../src";
import { idbStore } from "../src/kv/idb";
import { by, commit, conflict } from "./support/frames";
import { Profile, until } from "./support/page";
import { FakeServer } from "./support/server";

interface Doc {
  title: string;
  n: number;
  list: { id?: string; text: string }[];
}

const EMPTY: Doc = { title: "", n: 0, list: [] };

let server: FakeServer;
let profile: Profile;

beforeEach(() => {
  server = new FakeServer();
  server.create("s", EMPTY);
  profile = new Profile(server);
});

const state = () => server.session("s").state as unknown as Doc;

describe("a session", () => {
  test("connects under the server's prefix, shows the state, and saves what is changed", async () => {
    const { session } = profile.open<Doc>();
    expect(() => session.state).toThrow(/ready/);
    expect(() => session.update(() => {})).toThrow(ReattachError);
    await session.ready;
    expect([...server.sockets][0]).toMatchObject({
      url: "ws://server.test/app/ws/session/s",
      protocols: ["reattach.v1"],
    });
    const statuses: string[] = [];
    session.subscribe(() => {
      const { pending, savedOnDevice, saved } = session.status;
      statuses.push(`${pending} ${savedOnDevice} ${saved}`);
    });
    const change = session.update((draft) => {
      draft.title = "Hello";
      draft.list.push({ text: "one" });
    });
    expect(session.state.title).toBe("Hello");
    expect(session.confirmed.title).toBe("");
    expect(session.status).toMatchObject({ pending: 1, savedOnDevice: false, saved: false });
    expect(await change.stored).toBe(true);
    await change.acknowledged;
    expect(session.version).toBe(1);
    expect(state()).toEqual(session.state);
    expect(session.state.list[0]?.id).toMatch(/^[0-9a-f-]{14}7/);
    await until(() => statuses.at(-1) === "0 true true");
    expect(statuses).toContain("1 true false");
  });

  test("getters answer the same object until it changes", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    await until(() => session.status.connection === "online");
    const seen = [
      session.state,
      session.status,
      session.conflicts,
      session.rejected,
      session.devices,
    ];
    expect([
      session.state,
      session.status,
      session.conflicts,
      session.rejected,
      session.devices,
    ]).toEqual(seen);
    for (const [at, one] of [
      session.state,
      session.status,
      session.conflicts,
      session.rejected,
    ].entries()) {
      expect(one).toBe(seen[at]);
    }
    session.set("/n", 1);
    expect(session.state).not.toBe(seen[0]);
    expect(session.state.list).toBe((seen[0] as Doc).list);
  });

  test("the state is frozen, in types and at run time", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    expect(() => {
      // @ts-expect-error: what is read cannot be written
      session.state.n = 1;
    }).toThrow(TypeError);
    expectTypeOf(session.state.list).toEqualTypeOf<
      readonly { readonly id?: string; readonly text: string }[]
    >();
  });

  test("every operation has its method", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    session.set("/title", "ab");
    session.splice("/title", 1, 1, "c");
    session.inc("/n", 2);
    session.inc("/n");
    session.insert("/list", { id: "x", text: "x" });
    session.insert("/list", { id: "y", text: "y" }, null);
    session.insert("/list", { id: "z", text: "z" }, "y");
    session.move("/list/#y");
    session.unset("/list/#x");
    const last = session.change([{ op: "test", path: "/n", value: 3 }]);
    await last.acknowledged;
    expect(state()).toEqual({
      title: "ac",
      n: 3,
      list: [
        { id: "z", text: "z" },
        { id: "y", text: "y" },
      ],
    });
    expect(session.state).toEqual(state());
    expect(() => session.set("/title/x", 1)).toThrow(OpError);
  });

  test("an update without effect is no change", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    const { stored, acknowledged } = session.update(() => {});
    await Promise.all([stored, acknowledged]);
    expect(server.changes).toEqual([]);
  });

  test("two devices see each other's changes", async () => {
    const one = profile.open<Doc>().session;
    const two = new Profile(server).open<Doc>().session;
    await Promise.all([one.ready, two.ready]);
    one.set("/title", "one");
    await until(() => two.state.title === "one");
    const heard = vi.fn();
    one.addEventListener("presence", ({ detail }) => heard(detail.data));
    two.presence({ caret: 3 });
    await until(() => heard.mock.calls.length > 0);
    expect(heard).toHaveBeenCalledWith({ caret: 3 });
  });

  test("without a server: works on, says so, and comes back by itself", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    const events: string[] = [];
    for (const name of ["disconnectionDetected", "reconnectionDetected", "saved"] as const) {
      session.addEventListener(name, () => events.push(name));
    }
    server.kill();
    await until(() => session.status.connection === "reconnecting");
    const change = session.inc("/n");
    expect(await change.stored).toBe(true);
    expect(session.status).toMatchObject({ pending: 1, savedOnDevice: true, saved: false });
    server.up = true;
    await change.acknowledged;
    expect(state().n).toBe(1);
    expect(events).toEqual(["disconnectionDetected", "reconnectionDetected", "saved"]);
  });

  test("lost acknowledgements: everything counts once", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    server.mute = true;
    for (let i = 0; i < 10; i++) session.inc("/n");
    await until(() => state().n === 10);
    expect(session.status.pending).toBe(10);
    server.kill();
    server.mute = false;
    server.up = true;
    await until(() => session.status.saved);
    expect(state().n).toBe(10);
    expect(session.state.n).toBe(10);
  });

  test("a page that dies in the middle of typing: all is there again, and sent once", async () => {
    const page = profile.open<Doc>();
    await page.ready;
    server.kill();
    let last: Promise<boolean> | undefined;
    for (let i = 0; i < 30; i++) last = page.session.splice("/title", i, 0, "x").stored;
    await last;
    page.kill();
    const again = profile.open<Doc>();
    await again.ready;
    expect(again.session.state.title).toBe("x".repeat(30));
    expect(again.session.status).toMatchObject({ pending: 30, savedOnDevice: true, saved: false });
    server.up = true;
    await until(() => again.session.status.saved);
    expect(state().title).toBe("x".repeat(30));
    expect(server.changes).toHaveLength(30);
  });

  test("a session can begin without a server", async () => {
    server.kill();
    const options = { session: "fresh", create: { state: EMPTY } };
    const page = profile.open<Doc>(options);
    await page.ready;
    await page.session.set("/title", "offline").stored;
    page.kill();
    const { session } = profile.open<Doc>(options);
    await session.ready;
    expect(session.state.title).toBe("offline");
    server.up = true;
    await until(() => session.status.saved);
    expect(server.session("fresh").state).toEqual({ ...EMPTY, title: "offline" });
  });
});

describe("tabs of one profile", () => {
  test("B3: one connection; what is typed in one appears in the others, offline too", async () => {
    const tabs = [1, 2, 3].map(() => profile.open<Doc>().session);
    await Promise.all(tabs.map((tab) => tab.ready));
    const [one, two, three] = tabs as [Session<Doc>, Session<Doc>, Session<Doc>];
    await until(() => tabs.every(({ status }) => status.connection === "online"));
    expect(server.online).toBe(1);
    expect(one.status.sharedTabs).toBe(true);
    const sent = two.set("/title", "from two");
    await sent.acknowledged;
    await until(() =>
      tabs.every(({ state: { title }, version }) => title === "from two" && version === 1),
    );
    server.kill();
    await until(() => tabs.every(({ status }) => status.connection === "reconnecting"));
    three.inc("/n");
    await until(() => tabs.every(({ state: { n } }) => n === 1));
    server.up = true;
    await until(() => tabs.every(({ status }) => status.saved));
    expect(state()).toMatchObject({ title: "from two", n: 1 });
    expect(server.changes).toHaveLength(2);
  });

  test("the leader is killed while all type: nothing lost, nothing twice", async () => {
    const pages = [1, 2, 3].map(() => profile.open<Doc>());
    await Promise.all(pages.map((page) => page.ready));
    const [leader, ...others] = pages;
    const stored: Promise<boolean>[] = [];
    for (let i = 0; i < 20; i++) {
      for (const page of i < 10 ? pages : others) stored.push(page.session.inc("/n").stored);
      if (i === 10) {
        await Promise.all(stored);
        leader?.kill();
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    await until(() => others.every(({ session }) => session.status.saved), "all saved");
    expect(state().n).toBe(50);
    expect(others.map(({ session }) => session.state.n)).toEqual([50, 50]);
    expect(server.online).toBe(1);
  });

  test("presence goes through the leader, both ways", async () => {
    const [one, two] = [profile.open<Doc>().session, profile.open<Doc>().session];
    const other = new Profile(server).open<Doc>().session;
    await Promise.all([one.ready, two.ready, other.ready]);
    const heard = vi.fn();
    other.addEventListener("presence", ({ detail }) => heard(detail.data));
    two.addEventListener("presence", ({ detail }) => heard(detail.data));
    two.presence("from two");
    await until(() => heard.mock.calls.length === 1);
    other.presence("from other");
    await until(() => heard.mock.calls.length === 2);
    expect(heard.mock.calls).toEqual([["from two"], ["from other"]]);
  });

  test("another user of the profile neither sees nor sends what this one typed", async () => {
    const ann = profile.open<Doc>({ user: "ann" });
    await ann.ready;
    server.kill();
    await ann.session.set("/title", "secret").stored;
    ann.kill();
    server.up = true;
    const { session } = profile.open<Doc>({ user: "bob" });
    await session.ready;
    await until(() => session.status.connection === "online");
    expect(session.state.title).toBe("");
    expect(session.status).toMatchObject({ pending: 0, saved: true });
    expect(server.changes).toEqual([]);
    expect(new Set(server.hellos.map(({ client_id }) => client_id)).size).toBe(2);
  });
});

describe("without what a browser should have", () => {
  test("no locks: each tab is a client of its own, and finds its outbox again", async () => {
    const env = { locks: undefined };
    const one = profile.open<Doc>({ env });
    const two = profile.open<Doc>({ env });
    await Promise.all([one.ready, two.ready]);
    await until(() => server.online === 2);
    const names = () => [...server.session("s").sockets.keys()];
    const before = names();
    expect(new Set(before).size).toBe(2);
    expect(one.session.status).toMatchObject({ sharedTabs: false, storage: "durable" });
    server.kill();
    await one.session.inc("/n").stored;
    await two.session.inc("/n").stored;
    one.kill();
    two.kill();
    server.up = true;
    const again = [profile.open<Doc>({ env }), profile.open<Doc>({ env })];
    await Promise.all(again.map(({ ready }) => ready));
    await until(() => state().n === 2);
    expect(new Set(names())).toEqual(new Set(before));
  });

  test("no locks: the one tab that is left finds what another left behind", async () => {
    const env = { locks: undefined };
    const one = profile.open<Doc>({ env });
    const two = profile.open<Doc>({ env });
    await Promise.all([one.ready, two.ready]);
    server.kill();
    await two.session.inc("/n").stored;
    one.kill();
    two.kill();
    server.up = true;
    const { session } = profile.open<Doc>({ env });
    await session.ready;
    await until(() => session.status.saved && state().n === 1);
  });

  test.each<[string, () => never]>([
    [
      "cannot be opened",
      () => {
        throw new Error("denied");
      },
    ],
  ])("a store that %s: works in memory, and says so", async (_, transaction) => {
    const store = { durable: true, transaction, close() {} };
    const { session } = profile.open<Doc>({ store });
    await session.ready;
    const change = session.inc("/n");
    expect(await change.stored).toBe(false);
    await change.acknowledged;
    expect(session.status).toMatchObject({
      storage: "memory",
      savedOnDevice: false,
      saved: true,
      sharedTabs: false,
      error: { code: "storage", message: "denied" },
    });
    expect(state().n).toBe(1);
  });

  test("B4: a memory store promises nothing of the device", async () => {
    const { session } = profile.open<Doc>({ store: memoryStore() });
    await session.ready;
    expect(await session.inc("/n").stored).toBe(false);
    expect(session.status).toMatchObject({ storage: "memory", savedOnDevice: false });
  });

  test("a disk that is full: the leader and the others work on, and nothing pretends", async () => {
    const full = { now: false };
    const store = async () => {
      const real = await idbStore(`${profile.name}-full`);
      return {
        ...real,
        transaction: ((mode, body) =>
          real.transaction(mode, async (tx) => {
            const result = await body(tx);
            if (full.now) throw new DOMException("no space", "QuotaExceededError");
            return result;
          })) as typeof real.transaction,
      };
    };
    const leader = profile.open<Doc>({ store: await store() }).session;
    await leader.ready;
    const follower = profile.open<Doc>({ store: await store() }).session;
    await follower.ready;
    full.now = true;
    const change = leader.inc("/n");
    expect(await change.stored).toBe(false);
    await change.acknowledged;
    expect(leader.status).toMatchObject({ storage: "memory", savedOnDevice: false });
    const other = follower.inc("/n");
    expect(await other.stored).toBe(false);
    await other.acknowledged;
    expect(state().n).toBe(2);
    await until(() => leader.state.n === 2 && follower.state.n === 2);
    full.now = false;
    expect(follower.status.savedOnDevice).toBe(false);
  });

  test("a cloned profile: each goes on under a name of its own, nothing is lost or twice", async () => {
    const copy = async (from: string, to: string) => {
      const [source, target] = [await idbStore(from), await idbStore(to)];
      const db = await new Promise<IDBDatabase>((resolve) => {
        const asked = indexedDB.open(from, 1);
        asked.onsuccess = () => resolve(asked.result);
      });
      const rows = db.transaction("kv").objectStore("kv");
      const [keys, values] = await Promise.all(
        [rows.getAllKeys(), rows.getAll()].map(
          (asked) =>
            new Promise<unknown[]>((resolve) => {
              asked.onsuccess = () => resolve(asked.result);
            }),
        ),
      );
      await target.transaction("readwrite", async (tx) => {
        for (const [at, key] of (keys as string[]).entries()) tx.put(key, values?.[at]);
      });
      db.close();
      source.close();
      target.close();
    };
    const page = profile.open<Doc>();
    await page.ready;
    server.kill();
    await page.session.inc("/n", 1).stored;
    await page.session.inc("/n", 10).stored;
    page.kill();
    const twin = new Profile(server);
    await copy(profile.name, twin.name);
    // Each of the two goes on by itself, with the same next number.
    const one = profile.open<Doc>();
    const two = twin.open<Doc>();
    await Promise.all([one.ready, two.ready]);
    await one.session.inc("/n", 100).stored;
    await new Promise((resolve) => setTimeout(resolve, 2));
    await two.session.inc("/n", 1_000).stored;
    server.up = true;
    await until(() => one.session.status.saved && two.session.status.saved, "both saved");
    await until(() => one.session.state.n === 1_111 && two.session.state.n === 1_111);
    expect(state().n).toBe(1_111);
    const names = new Set(server.hellos.map(({ client_id }) => client_id));
    expect(names.size).toBeGreaterThan(1);
  });
});

describe("access", () => {
  test("the token is asked for at each connection, and afresh after a 4401", async () => {
    let n = 0;
    server.gate = ({ token }) => (token === "t2" ? null : 4401);
    const { session } = profile.open<Doc>({ token: async () => `t${++n}` });
    await session.ready;
    expect(server.hellos.map(({ token }) => token)).toEqual(["t1", "t2"]);
  });

  test("a token that cannot be had is asked for again", async () => {
    let n = 0;
    const token = () => {
      if (++n < 3) throw new Error("sign in first");
      return "t";
    };
    const { session } = profile.open<Doc>({ token });
    await until(() => session.status.error?.message === "sign in first");
    await session.ready;
    expect(n).toBe(3);
  });

  test("no such session: ready rejects, the status says why", async () => {
    const { session } = profile.open<Doc>({ session: "none" });
    await expect(session.ready).rejects.toMatchObject({ code: "session_not_found" });
    expect(session.status).toMatchObject({
      connection: "closed",
      error: { code: "session_not_found" },
    });
  });
});

describe("lists with actions", () => {
  test("L3: a refused change can be sent again, edited, forgotten, exported", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    server.judge = ({ ops }) => (JSON.stringify(ops).includes("bad") ? "forbidden" : null);
    const refused = ["bad 1", "bad 2", "bad 3"].map((text) => session.set("/title", text));
    await expect(refused[0]?.acknowledged).rejects.toMatchObject({ code: "forbidden" });
    await until(() => session.rejected.length === 3);
    expect(session.state.title).toBe("");
    expect(session.rejected[0]).toMatchObject({
      ref: refused[0]?.ref,
      code: "forbidden",
      ops: [{ op: "set", path: "/title", value: "bad 1" }],
    });
    expect(JSON.parse(JSON.stringify(session.export())).rejected).toHaveLength(3);

    await session.rejected[0]?.edit([{ op: "set", path: "/title", value: "good" }]).acknowledged;
    expect(session.rejected).toHaveLength(2);
    server.judge = () => null;
    await session.rejected[0]?.sendAgain().acknowledged;
    expect(state().title).toBe("bad 2");
    session.rejected[0]?.discard();
    expect(session.rejected).toEqual([]);
  });

  test("a conflict is settled by an operation", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    const made = conflict("c", "/title", "a", "b");
    const { sockets } = server.session("s");
    const detected = vi.fn();
    session.addEventListener("conflictDetected", ({ detail }) => detected(detail.id));
    for (const socket of sockets.values()) {
      socket.tell(commit(1, [], by("x", 1), { conflicts: [made] }));
    }
    await until(() => session.conflicts.length === 1);
    expect(session.conflicts[0]).toMatchObject(made);
    expect(detected).toHaveBeenCalledWith("c");
    server.judge = ({ ops }) => (ops[0]?.op === "resolve" ? "seen" : null);
    await expect(session.conflicts[0]?.resolve("lost").acknowledged).rejects.toMatchObject({
      code: "seen",
    });
  });
});

test("policies and schema are those of the welcome", async () => {
  server.terms = { policies: { "/title": "text" }, schema: { name: "Doc", version: 2 } };
  const { session, ready } = profile.open<Doc>();
  expect(session.policies).toEqual({});
  expect(session.schema).toBeNull();
  await ready;
  await until(() => session.status.connection === "online");
  expect(session.policies).toEqual({ "/title": "text" });
  expect(session.schema).toEqual({ name: "Doc", version: 2 });
});

describe("values of this device alone", () => {
  test("are kept with the session, and never sent", async () => {
    const page = profile.open<Doc>();
    await page.ready;
    const caret = page.session.local<{ at: number }>("caret");
    expect(caret.get()).toBeUndefined();
    const told = vi.fn();
    const stop = caret.subscribe(told);
    for (let at = 0; at < 20; at++) caret.set({ at });
    expect(caret.get()).toEqual({ at: 19 });
    expect(told).toHaveBeenCalledTimes(20);
    stop();
    page.session.local("gone").set(1);
    page.session.local("gone").set(undefined);
    await page.session.close();
    const again = profile.open<Doc>();
    await again.ready;
    expect(again.session.local("caret").get()).toEqual({ at: 19 });
    expect(again.session.local("gone").get()).toBeUndefined();
    expect(new Profile(server).open<Doc>().session.local("caret").get()).toBeUndefined();
    expect(server.changes).toEqual([]);
  });
});

describe("the end", () => {
  test("close hangs up, keeps what is pending, and lets another tab lead", async () => {
    const one = profile.open<Doc>().session;
    const two = profile.open<Doc>().session;
    await Promise.all([one.ready, two.ready]);
    await until(() => server.online === 1);
    one.inc("/n");
    await one.close();
    await one.close();
    expect(() => one.inc("/n")).toThrow(/was closed/);
    expect(one.status.connection).toBe("closed");
    await until(() => two.status.saved && two.state.n === 1);
    expect(server.online).toBe(1);
    await two.inc("/n").acknowledged;
    expect(state().n).toBe(2);
  });

  test("a listener's mistake is not the others'", async () => {
    const { session } = profile.open<Doc>();
    await session.ready;
    const thrown: unknown[] = [];
    // The page's own `error` event is where such mistakes belong; here it is the process's.
    const others = process.listeners("uncaughtException");
    process.removeAllListeners("uncaughtException");
    process.on("uncaughtException", (error) => thrown.push(error));
    const second = vi.fn();
    const stopFirst = session.subscribe(() => {
      stopFirst();
      throw new Error("listener");
    });
    const stop = session.subscribe(second);
    session.inc("/n");
    await until(() => session.status.saved && thrown.length > 0);
    await session.close();
    process.removeAllListeners("uncaughtException");
    for (const other of others) process.on("uncaughtException", other);
    expect(thrown[0]).toMatchObject({ message: "listener" });
    expect(second.mock.calls.length).toBeGreaterThan(0);
    stop();
  });

  test("outside of a page a url is needed", () => {
    expect(() => connect({ session: "s" })).toThrow(expect.objectContaining({ code: "bad_url" }));
  });

  test("a url may be relative to the page", async () => {
    const env = { page: "http://server.test/shop/cart.html" };
    for (const url of ["/app", "../app/"]) {
      const { session } = profile.open<Doc>({ url, env });
      await until(() => session.status.connection === "online");
      expect([...server.sockets].at(-1)?.url).toBe("ws://server.test/app/ws/session/s");
      await session.close();
    }
    expect(() => profile.open({ url: "http://", env })).toThrow(TypeError);
  });
});
