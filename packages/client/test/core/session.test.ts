import { describe, expect, test } from "vitest";
import type { Operation } from "../../src/core/wire";
import { Device, durableMemory } from "../support/device";
import { by, commit, conflict, rejected } from "../support/frames";

const set = (path: string, value: never | string | number): Operation => ({
  op: "set",
  path,
  value,
});
const replaced = (path: string, value: string | number) => [
  { op: "replace", path, value } as const,
];
const added = (path: string, value: string | number) => [{ op: "add", path, value } as const];

describe("hello and welcome (protocol, section 5)", () => {
  test("W2: hello comes first, with what this client has", async () => {
    const device = await new Device(durableMemory(), {
      create: { state: { a: 1 } },
      schemaVersion: 2,
      device: { name: "Laptop" },
    }).start();
    device.feed({ type: "opened", token: "t" });
    expect(device.sent).toEqual([
      {
        type: "hello",
        client_id: device.core.clientId,
        device: { id: device.name, name: "Laptop" },
        t: device.now,
        epoch: null,
        version: null,
        seq: 0,
        token: "t",
        schema_version: 2,
        create: { state: { a: 1 } },
      },
    ]);
  });

  test("only a client that never saw the session asks to create it", async () => {
    const device = await new Device(durableMemory(), { create: { state: { a: 1 } } }).join({
      a: 1,
    });
    await device.close(1006);
    await device.reopen();
    expect(device.hello).toMatchObject({ epoch: "E", version: 0 });
    expect(device.hello).not.toHaveProperty("create");
  });

  test("frames before the welcome, and after the end, are nothing", async () => {
    const device = await new Device().start();
    device.open();
    await device.frame(commit(1, []));
    expect(device.shown).toBeUndefined();
    await device.welcome({});
    device.feed({ type: "stop" });
    await device.frame(commit(1, added("/a", 1)));
    expect(device.shown).toEqual({});
  });

  test("R1: resumed brings every commit since, in order", async () => {
    const device = await new Device().join({ a: 0 });
    await device.close(1006);
    await device.reopen();
    await device.resumed([commit(1, replaced("/a", 1)), commit(2, replaced("/a", 2))]);
    expect(device.core.replica.confirmed).toMatchObject({ version: 2, state: { a: 2 } });
    expect(device.core.status.connection).toBe("online");
  });

  test("a patch that does not fit is never applied: the next hello asks for the whole state", async () => {
    const device = await new Device(durableMemory(), { create: { state: {} } }).join({ a: 0 });
    await device.frame(commit(1, [{ op: "remove", path: "/gone" }]));
    expect(device.connected).toBe(false);
    expect(device.core.replica.confirmed).toMatchObject({ version: 0, state: { a: 0 } });
    await device.reopen();
    expect(device.hello).toMatchObject({ epoch: null, version: null });
    expect(device.hello).not.toHaveProperty("create");
    await device.welcome({ a: 5 }, { version: 1 });
    expect(device.shown).toEqual({ a: 5 });
  });
});

describe("commits", () => {
  test("are applied in their order; one seen before is nothing", async () => {
    const device = await new Device().join({ a: 0 });
    await device.frame(commit(1, replaced("/a", 1)));
    await device.frame(commit(1, replaced("/a", 7)));
    expect(device.shown).toEqual({ a: 1 });
  });

  test("a skipped version asks to sync, and nothing is applied until the answer", async () => {
    const device = await new Device().join({ a: 0 });
    await device.frame(commit(2, replaced("/a", 2)));
    await device.frame(commit(3, replaced("/a", 3)));
    expect(device.sent.filter(({ type }) => type === "request_sync")).toEqual([
      { type: "request_sync", epoch: "E", version: 0 },
    ]);
    expect(device.shown).toEqual({ a: 0 });
    await device.resumed([1, 2, 3].map((v) => commit(v, replaced("/a", v))));
    expect(device.shown).toEqual({ a: 3 });
    await device.frame(commit(4, replaced("/a", 4)));
    expect(device.shown).toEqual({ a: 4 });
  });

  test("session_restored is a commit", async () => {
    const device = await new Device().join({ a: 0 });
    await device.frame({
      ...commit(1, replaced("/a", 9)),
      type: "session_restored",
      from_version: 0,
      to_version: 0,
    });
    expect(device.shown).toEqual({ a: 9 });
    expect(device.events.map(({ type }) => type)).toContain("sessionRestored");
  });

  test("conflicts come and go with the commits that make and settle them", async () => {
    const device = await new Device().join({ a: 0 });
    const made = conflict("c", "/a", 1, 2);
    await device.frame(commit(1, replaced("/a", 1), undefined, { conflicts: [made] }));
    expect(device.core.conflicts).toEqual([made]);
    expect(device.events.at(-2)).toMatchObject({ type: "conflictDetected", detail: { id: "c" } });
    // One whose settling is on its way is not shown any more.
    await device.stored({ op: "resolve", conflict_id: "c", keep: "lost" });
    expect(device.core.conflicts).toEqual([]);
    await device.frame({ type: "rejected", seq: 1, code: "already_resolved", message: "" });
    expect(device.core.conflicts).toEqual([made]);
    const resolved = { ...made, status: "resolved" as const };
    await device.frame(commit(2, [], undefined, { conflicts: [resolved] }));
    expect(device.core.conflicts).toEqual([]);
  });
});

describe("optimism", () => {
  test("pending changes are shown over the confirmed state", async () => {
    const device = await new Device().join({ a: 0, b: 0 });
    await device.stored(set("/a", 1));
    expect(device.shown).toEqual({ a: 1, b: 0 });
    expect(device.confirmed).toEqual({ a: 0, b: 0 });
    await device.frame(commit(1, replaced("/b", 5)));
    expect(device.shown).toEqual({ a: 1, b: 5 });
    await device.acknowledge(2, replaced("/a", 1), 1);
    expect(device.confirmed).toEqual({ a: 1, b: 5 });
    expect(device.core.status).toMatchObject({ pending: 0, saved: true, savedOnDevice: true });
  });

  test("an acknowledgement that ends as expected leaves what is shown as it is", async () => {
    const device = await new Device().join({ a: 0 });
    await device.stored(set("/a", 1));
    await device.stored(set("/b", 1));
    const { shown } = device;
    await device.acknowledge(1, replaced("/a", 1), 1);
    expect(device.shown).toBe(shown);
  });

  test("an acknowledgement that ends otherwise is shown as it ended", async () => {
    const device = await new Device().join({ a: 0 });
    const ref = await device.stored(set("/a", 1));
    await device.acknowledge(1, [], 1);
    expect(device.shown).toEqual({ a: 0 });
    expect(device.decided).toEqual([{ ref, code: undefined }]);
  });

  test("a change that makes no sense throws, and nothing is left of it", async () => {
    const device = await new Device().join({ a: 0 });
    expect(() => device.change(set("/b", 1), set("/x/y", 1))).toThrow(/parent exists/);
    await device.settle();
    expect(device.shown).toEqual({ a: 0 });
    expect(device.changes).toEqual([]);
    expect(() => new Device().change(set("/a", 1))).toThrow(/ready/);
  });

  test("X6: pending splices are carried over incoming ones; what is sent is not altered", async () => {
    const device = await new Device().join({ list: [{ id: "x", t: "world" }] });
    const splice = { op: "splice", path: "/list/#x/t", index: 5, delete: 0, insert: "!" } as const;
    await device.stored(splice);
    await device.stored({ ...splice, index: 6, insert: "?" });
    await device.frame(commit(1, [{ op: "str_ins", path: "/list/0/t", pos: 0, str: "hello " }]));
    expect(device.shown).toEqual({ list: [{ id: "x", t: "hello world!?" }] });
    await device.close(1006);
    await device.reopen();
    await device.resumed([]);
    expect(device.changes.slice(-2).map(({ ops }) => ops)).toEqual([
      [splice],
      [{ ...splice, index: 6, insert: "?" }],
    ]);
  });

  test("10,000 offline changes stay quick, and drain without being applied again and again", async () => {
    const device = await new Device().join({ text: "", n: 0 });
    await device.close(1006);
    const started = performance.now();
    for (let i = 0; i < 10_000; i++) {
      device.change({ op: "splice", path: "/text", index: i, delete: 0, insert: "x" });
      expect(device.shown).toBeDefined();
    }
    await device.settle();
    const typed = performance.now();
    device.timers.clear();
    device.feed({ type: "network", online: true });
    device.open();
    await device.welcome({ text: "", n: 0 });
    for (let i = 0; i < 10_000; i++) {
      const frame = commit(
        i + 1,
        [{ op: "str_ins", path: "/text", pos: i, str: "x" }],
        by(device.core.clientId, i + 1),
      );
      device.feed({ type: "frame", frame });
      if (!device.shown) throw new Error("expected a state");
    }
    await device.settle();
    expect(device.core.status).toMatchObject({ pending: 0, saved: true });
    expect(device.changes).toHaveLength(10_000);
    expect(device.shown).toEqual({ text: "x".repeat(10_000), n: 0 });
    expect(typed - started).toBeLessThan(5_000);
    expect(performance.now() - typed).toBeLessThan(5_000);
  }, 20_000);
});

describe("the outbox (protocol, section 5)", () => {
  test("B1: a change is sent only after it is stored", async () => {
    const device = await new Device().join({ a: 0 });
    const ref = device.change(set("/a", 1));
    expect(device.core.status).toMatchObject({ pending: 1, savedOnDevice: false, saved: false });
    expect(device.changes).toEqual([]);
    expect(device.kept).toEqual([]);
    await device.settle();
    expect(device.kept).toEqual([[ref, true]]);
    expect(device.core.status).toMatchObject({ pending: 1, savedOnDevice: true, saved: false });
    expect(device.changes).toEqual([
      { type: "change", seq: 1, epoch: "E", base: 0, at: device.now, ops: [set("/a", 1)] },
    ]);
  });

  test("B1: not even while its transaction is under way, whatever else happens then", async () => {
    let complete = () => {};
    let slow = false;
    const disk = durableMemory();
    const store: typeof disk = {
      ...disk,
      async transaction(mode, body) {
        const result = await disk.transaction(mode, body);
        if (slow) {
          await new Promise<void>((resolve) => {
            complete = resolve;
          });
        }
        return result;
      },
    };
    const device = await new Device(store).join({ a: 0 });
    slow = true;
    device.change(set("/a", 1));
    for (let i = 0; i < 20; i++) await null;
    expect(device.core.replica.pending[0]?.change.seq).toBe(1);
    device.feed({ type: "frame", frame: commit(1, added("/b", 1)) });
    expect(device.changes).toEqual([]);
    expect(device.core.status.savedOnDevice).toBe(false);
    slow = false;
    complete();
    await device.settle();
    expect(device.changes.map(({ seq }) => seq)).toEqual([1]);
  });

  test("C1, C2: numbers are 1, 2, 3, …; `at` never goes back; base is what was applied", async () => {
    const device = await new Device().join({ a: 0 });
    await device.stored(set("/a", 1));
    device.now -= 500;
    await device.frame(commit(1, added("/b", 1)));
    await device.stored(set("/a", 2));
    expect(device.changes).toMatchObject([
      { seq: 1, base: 0, at: 1_000_000 },
      { seq: 2, base: 1, at: 1_000_000 },
    ]);
  });

  test("queued keystrokes share one transaction", async () => {
    const device = await new Device().join({ a: 0 });
    device.pokes = [];
    for (let i = 1; i <= 50; i++) device.change(set("/a", i));
    await device.settle();
    expect(device.kept).toHaveLength(50);
    expect(device.pokes.length).toBeLessThanOrEqual(2);
    expect(device.changes.map(({ seq }) => seq)).toEqual(
      Array.from({ length: 50 }, (_, i) => i + 1),
    );
  });

  test("a reload without a server shows the document with its offline edits, and sends them then", async () => {
    const store = durableMemory();
    const before = await new Device(store).join({ a: 0 }, { version: 7 });
    await before.stored(set("/a", 1));
    await before.acknowledge(8, replaced("/a", 1), 1);
    await before.frame(commit(9, added("/c", 1)));
    await before.stored(set("/b", 2));

    const after = await new Device(store).start();
    expect(after.core.clientId).toBe(before.core.clientId);
    expect(after.shown).toEqual({ a: 1, b: 2, c: 1 });
    expect(after.core.replica.confirmed).toMatchObject({ version: 9, epoch: "E" });
    expect(after.core.status).toMatchObject({ pending: 1, savedOnDevice: true, saved: false });
    after.open();
    expect(after.hello).toMatchObject({ epoch: "E", version: 9, seq: 1 });
    await after.resumed([], { seq: 1, seq_at: before.now });
    expect(after.changes).toMatchObject([{ seq: 2, base: 9, ops: [set("/b", 2)] }]);
  });

  test("B1: what the server decided is gone from the disk with the transaction that keeps its effect", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ a: 0 });
    for (let i = 1; i <= 3; i++) await device.stored(set("/a", i));
    await device.acknowledge(1, replaced("/a", 1), 1);
    await device.acknowledge(2, replaced("/a", 2), 2);
    const after = await new Device(store).start(false);
    expect(after.confirmed).toEqual({ a: 2 });
    expect(after.core.replica.pending.map(({ change }) => change.seq)).toEqual([3]);
  });

  test("the snapshot is written anew by what the commits after it weigh", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ t: "" });
    const long = "x".repeat(9_000);
    for (let version = 1; version <= 5; version++) {
      await device.frame(commit(version, replaced("/t", long + version)));
    }
    const commits = await store.transaction("readonly", (tx) =>
      tx.range("commit/", "commit/\uffff"),
    );
    expect(commits.length).toBeLessThan(5);
    const after = await new Device(store).start(false);
    expect(after.confirmed).toEqual({ t: `${long}5` });
  });

  test("B6: a session can be started offline; its changes take the epoch that the server gives", async () => {
    const store = durableMemory();
    const device = await new Device(store, { create: { state: { a: 0 } } }).start();
    expect(device.shown).toBeUndefined();
    await device.close(1006);
    expect(device.shown).toEqual({ a: 0 });
    await device.stored(set("/a", 1));
    const after = await new Device(store, { create: { state: { a: 0 } } }).start();
    expect(after.shown).toEqual({ a: 1 });
    after.open();
    expect(after.hello).toMatchObject({ epoch: null, version: null, create: { state: { a: 0 } } });
    await after.welcome({ a: 0 }, { created: true });
    expect(after.changes).toMatchObject([{ seq: 1, epoch: "E", base: 0 }]);
  });
});

describe("exactly once", () => {
  test("X2, X6: after a welcome, what is undecided above `seq` is sent again, unaltered", async () => {
    const device = await new Device().join({ a: 0 });
    for (let i = 1; i <= 3; i++) await device.stored(set("/a", i));
    const first = device.changes;
    await device.close(1006);
    await device.reopen();
    device.sent = [];
    // The acknowledgements of 1 and 2 were lost.
    const own = (seq: number) => by(device.core.clientId, seq);
    await device.resumed(
      [commit(1, replaced("/a", 1), own(1)), commit(2, replaced("/a", 2), own(2))],
      { seq: 2, seq_at: device.changes[0]?.at ?? first[1]?.at ?? null },
    );
    expect(device.changes).toEqual([first[2]]);
    expect(device.decided.map(({ code }) => code)).toEqual([undefined, undefined]);
  });

  test("X2: what the welcome says is decided is in its state", async () => {
    const device = await new Device().join({ a: 0 });
    const ref = await device.stored(set("/a", 1));
    await device.close(1006);
    await device.reopen();
    await device.welcome({ a: 1 }, { version: 1, seq: 1, seq_at: device.changes[0]?.at ?? null });
    expect(device.decided).toEqual([{ ref, code: undefined }]);
    expect(device.core.status.pending).toBe(0);
    expect(device.changes).toHaveLength(1);
  });

  test("X4: a sequence_gap is answered with what was expected, and all after it", async () => {
    const device = await new Device().join({ a: 0 });
    for (let i = 1; i <= 3; i++) await device.stored(set("/a", i));
    device.sent = [];
    await device.frame({ type: "error", code: "sequence_gap", message: "", expected: 2 });
    expect(device.changes.map(({ seq }) => seq)).toEqual([2, 3]);
  });

  test("L2: no more than 256 undecided changes are on their way", async () => {
    const device = await new Device().join({ n: 0 });
    for (let i = 0; i < 300; i++) device.change({ op: "inc", path: "/n", by: 1 });
    await device.settle();
    expect(device.changes).toHaveLength(256);
    await device.acknowledge(1, replaced("/n", 1), 1);
    expect(device.changes).toHaveLength(257);
  });
});

describe("a client whose record is not the server's", () => {
  async function cloned(): Promise<Device> {
    const device = await new Device().join({ n: 0 });
    for (let i = 1; i <= 3; i++) await device.stored({ op: "inc", path: "/n", by: i });
    await device.close(1006);
    await device.reopen();
    return device;
  }

  test("B5: another `at` at `seq`: new name, asks the history, sends what was not committed", async () => {
    const device = await cloned();
    const [one, two, three] = device.changes;
    const old = device.core.clientId;
    device.sent = [];
    await device.resumed([], { seq: 3, seq_at: 77 });
    expect(device.asked).toEqual({ clientId: old, from: 1 });
    expect(device.connected).toBe(false);
    // 1 was this client's own; 2 and 3 are those of the other one with this name.
    const item = (seq: number, at: number) => ({ at: 1, client_at: at, by: by(old, seq) });
    device.feed({ type: "history", commits: [item(1, one?.at ?? 0), item(2, 76), item(3, 77)] });
    await device.settle();
    expect(device.core.clientId).not.toBe(old);
    expect(device.decided).toHaveLength(1);
    device.open();
    expect(device.hello).toMatchObject({ client_id: device.core.clientId, seq: 0 });
    await device.welcome({ n: 1 }, { version: 3 });
    expect(device.changes).toEqual([
      { ...two, seq: 1 },
      { ...three, seq: 2 },
    ]);
  });

  test.each([
    ["a number that this client never gave out", 9, 1],
    ["a lower number than it knows to be decided", 0, null],
  ])("%s", async (_, seq, seqAt) => {
    const device = await cloned();
    await device.resumed([], { seq: 3, seq_at: device.changes[2]?.at ?? 0 });
    await device.close(1006);
    await device.reopen();
    await device.resumed([], { seq, seq_at: seqAt });
    expect(device.asked).not.toBeNull();
  });

  test("X5, B5: seq_reused, and a commit under this name that it did not send", async () => {
    const device = await cloned();
    await device.resumed([]);
    await device.frame({ type: "error", code: "seq_reused", message: "" });
    expect(device.asked).not.toBeNull();

    const other = await new Device().join({ n: 0 });
    await other.acknowledge(1, replaced("/n", 1), 1);
    expect(other.asked).not.toBeNull();
  });

  test("where the history cannot be had, it is tried again; nothing is sent meanwhile", async () => {
    const device = await cloned();
    device.sent = [];
    await device.resumed([], { seq: 3, seq_at: 77 });
    device.feed({ type: "history", commits: null });
    await device.reopen();
    expect(device.changes).toEqual([]);
    expect(device.hello.seq).toBe(0);
  });

  test("a history that does not come ends the asking, and no last breath goes meanwhile", async () => {
    const device = await cloned();
    await device.resumed([], { seq: 3, seq_at: 77 });
    device.connected = true;
    await device.advance(14_999);
    expect(device.connected).toBe(true);
    await device.advance(1);
    // What is still on its way is given up.
    expect(device.connected).toBe(false);
    expect(device.core.lastBreath(() => true, device.now)).toBeNull();
    device.feed({ type: "history", commits: [] });
    await device.reopen();
    expect(device.hello.seq).toBe(0);
  });

  test("B1, B5: the new name and numbers are on the disk before anything is sent under them", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ n: 0 });
    await device.stored({ op: "inc", path: "/n", by: 1 });
    await device.frame({ type: "error", code: "seq_reused", message: "" });
    device.feed({ type: "history", commits: [] });
    expect(device.connected).toBe(false);
    await device.settle();
    expect(device.connected).toBe(true);
    const after = await new Device(store).start(false);
    expect(after.core.clientId).toBe(device.core.clientId);
    expect(after.core.replica.pending).toHaveLength(1);
  });
});

describe("another epoch", () => {
  test("E1: undecided changes are sent under a new name, and the application hears what was lost", async () => {
    const device = await new Device().join({ a: 0, n: 0 }, { version: 5 });
    for (let i = 1; i <= 3; i++) await device.stored(set("/a", i));
    await device.acknowledge(6, replaced("/a", 1), 1);
    const old = device.core.clientId;
    await device.close(1006);
    await device.reopen();
    await device.welcome({ a: 0, n: 0 }, { epoch: "F", version: 4, seq: 0 });
    expect(device.events).toContainEqual({
      type: "historyLost",
      detail: { lost: { epoch: "E", version: 6, state: { a: 1, n: 0 } } },
    });
    device.open();
    device.sent = [];
    expect(device.core.clientId).not.toBe(old);
    await device.welcome({ a: 0, n: 0 }, { epoch: "F", version: 4 });
    expect(device.changes).toMatchObject([
      { seq: 1, epoch: "E", base: 5, ops: [set("/a", 2)] },
      { seq: 2, epoch: "E", base: 5, ops: [set("/a", 3)] },
    ]);
    expect(device.shown).toEqual({ a: 3, n: 0 });
    await device.stored(set("/a", 4));
    expect(device.changes.at(-1)).toMatchObject({ seq: 3, epoch: "F", base: 4 });
  });

  test("E1: undecided changes up to `seq` are dropped: the server has decided them", async () => {
    const device = await new Device().join({ a: 0 });
    for (let i = 1; i <= 2; i++) await device.stored(set("/a", i));
    await device.close(1006);
    await device.reopen();
    await device.welcome({ a: 1 }, { epoch: "F", version: 1, seq: 1, seq_at: device.now });
    device.open();
    device.sent = [];
    await device.welcome({ a: 1 }, { epoch: "F", version: 1 });
    expect(device.changes).toMatchObject([{ seq: 1, ops: [set("/a", 2)] }]);
  });
});

describe("refusals and limits", () => {
  test("L3: a refused change is kept with its code, across reloads, until it is dealt with", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ a: 0 });
    const ref = await device.stored(set("/a", 1));
    await device.frame({ type: "rejected", seq: 1, code: "forbidden", message: "no", path: "/a" });
    expect(device.decided).toEqual([{ ref, code: "forbidden" }]);
    expect(device.shown).toEqual({ a: 0 });
    expect(device.core.status).toMatchObject({ pending: 0, saved: true });

    const after = await new Device(store).start();
    expect([...after.core.rejected.values()]).toMatchObject([
      { ref, code: "forbidden", path: "/a", change: { ops: [set("/a", 1)] } },
    ]);
    expect(after.shown).toEqual({ a: 0 });
    // Made anew, it is in the outbox and not in the list, in one transaction.
    after.run(after.core.change([set("/a", 2)], "again", after.now, ref));
    await after.settle();
    const last = await new Device(store).start(false);
    expect(last.core.rejected.size).toBe(0);
    expect(last.shown).toEqual({ a: 2 });
  });

  test("a refused change can be forgotten", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ a: 0 });
    const ref = await device.stored(set("/a", 1));
    await device.frame({ type: "rejected", seq: 1, code: "forbidden", message: "no" });
    device.run(device.core.discard(ref));
    await device.settle();
    expect((await new Device(store).start(false)).core.rejected.size).toBe(0);
  });

  test("X3: refusals that the client did not hear of come with the welcome", async () => {
    const device = await new Device().join({ a: 0 });
    await device.stored(set("/a", 1));
    await device.stored(set("/b", 1));
    const at = device.changes[1]?.at ?? null;
    await device.close(1006);
    await device.reopen();
    await device.resumed([commit(1, added("/b", 1), by(device.core.clientId, 2))], {
      seq: 2,
      seq_at: at,
      rejected: [rejected(1, "forbidden")],
    });
    expect(device.decided.map(({ code }) => code)).toEqual(["forbidden", undefined]);
    expect(device.shown).toEqual({ a: 0, b: 1 });
  });

  test("L1: load uses up no number: the change is sent again after retry_after_ms", async () => {
    const device = await new Device().join({ a: 0 });
    await device.stored(set("/a", 1));
    await device.stored(set("/a", 2));
    device.sent = [];
    await device.frame({ type: "error", code: "unavailable", message: "", retry_after_ms: 700 });
    // What came behind it was ignored by the server, which says so once.
    await device.frame({ type: "error", code: "sequence_gap", message: "", expected: 1 });
    await device.stored(set("/a", 3));
    expect(device.changes).toEqual([]);
    await device.advance(699);
    expect(device.changes).toEqual([]);
    await device.advance(1);
    expect(device.changes.map(({ seq }) => seq)).toEqual([1, 2, 3]);
  });

  test("R2: an error before the welcome waits as long as it says", async () => {
    const device = await new Device().start();
    device.open();
    await device.frame({ type: "error", code: "unavailable", message: "", retry_after_ms: 1_000 });
    expect(device.connected).toBe(false);
    await device.advance(999);
    expect(device.connected).toBe(false);
    await device.advance(1_001);
    expect(device.connected).toBe(true);
  });

  describe("a client too old for the schema", () => {
    const schema = (version: number) => ({ schema: { name: "Draft", version } });
    const tooOld = { type: "error", code: "upgrade_required", message: "reload" } as const;

    async function outdated(store = durableMemory()): Promise<Device> {
      const device = await new Device(store, { schemaVersion: 1 }).join({ a: 0 }, schema(3));
      await device.frame(tooOld);
      return device;
    }

    test("L7: stays read-only, its outbox intact", async () => {
      const device = await outdated();
      await device.stored(set("/a", 1));
      expect(device.changes).toEqual([]);
      expect(device.core.status).toMatchObject({
        connection: "online",
        pending: 1,
        savedOnDevice: true,
        readOnly: true,
        error: { code: "upgrade_required", message: "reload" },
      });
      await device.frame(commit(1, added("/b", 1)));
      expect(device.shown).toEqual({ a: 1, b: 1 });
    });

    test("L7: the application is told once, and nothing is sent on the next lines either", async () => {
      const device = await outdated();
      await device.stored(set("/a", 1));
      await device.close(1006);
      await device.reopen();
      await device.resumed([], schema(3));
      expect(device.changes).toEqual([]);
      await device.frame(tooOld);
      const told = device.events.filter(({ type }) => type === "upgradeRequired");
      expect(told).toEqual([{ type: "upgradeRequired", detail: { message: "reload" } }]);
    });

    test("L7: goes on where the server has a schema again that it is made for", async () => {
      const device = await outdated();
      await device.stored(set("/a", 1));
      await device.close(1012);
      await device.reopen();
      await device.resumed([], schema(1));
      expect(device.core.status).toMatchObject({ readOnly: false, error: null });
      expect(device.changes).toMatchObject([{ seq: 1, schema_version: 1 }]);
    });

    test("L7: the next version of the application sends what the old one kept", async () => {
      const store = durableMemory();
      await (await outdated(store)).stored(set("/a", 1));
      const newer = await new Device(store, { schemaVersion: 3 }).start();
      newer.open();
      expect(newer.hello).toMatchObject({ schema_version: 3 });
      await newer.resumed([], schema(3));
      await newer.stored(set("/b", 1));
      // Each under the version that it was made for: the server knows what became of its fields.
      expect(newer.changes).toMatchObject([
        { seq: 1, schema_version: 1, ops: [set("/a", 1)] },
        { seq: 2, schema_version: 3 },
      ]);
      const ref = newer.core.replica.pending[0]?.ref;
      await newer.frame(rejected(1, "schema_changed", "/a"));
      expect(newer.events.at(-1)).toMatchObject({
        type: "changeRejected",
        detail: { ref, code: "schema_changed" },
      });
      expect([...newer.core.rejected.values()]).toMatchObject([
        { code: "schema_changed", path: "/a", change: { ops: [set("/a", 1)] } },
      ]);
      expect(newer.shown).toEqual({ a: 0, b: 1 });
    });
  });

  test("the welcome's policies and schema are kept for when there is no server", async () => {
    const store = durableMemory();
    const terms = { policies: { "/t": "text" }, schema: { name: "Draft", version: 2 } };
    const device = await new Device(store).join({ t: "" }, terms);
    expect(device.core.terms).toEqual(terms);
    const { policies } = device.core.terms;
    await device.close(1006);
    await device.reopen();
    await device.resumed([], terms);
    expect(device.core.terms.policies).toBe(policies);
    expect((await new Device(store).start()).core.terms).toEqual(terms);
    await device.close(1006);
    await device.reopen();
    await device.resumed([], { policies: {} });
    expect(device.core.terms).toEqual({ policies: {}, schema: null });
    expect((await new Device(store).start()).core.terms).toEqual({ policies: {}, schema: null });
  });

  test.each([4400, 4413])(
    "L4: a change that closes its connection twice with %d is refused here",
    async (code) => {
      const store = durableMemory();
      const device = await new Device(store).join({ a: 0 });
      await device.stored(set("/a", 1));
      const bad = await device.stored(set("/a", 2));
      await device.stored(set("/a", 3));
      const again = async (seq: number, commits: Parameters<Device["resumed"]>[0] = []) => {
        await device.reopen();
        device.sent = [];
        await device.resumed(commits, { seq, seq_at: seq ? 1_000_000 : null });
      };
      await device.close(code);
      // From now on one by one: 1 passes.
      await again(0);
      expect(device.changes.map(({ seq }) => seq)).toEqual([1]);
      await device.acknowledge(1, replaced("/a", 1), 1);
      expect(device.changes.map(({ seq }) => seq)).toEqual([1, 2]);
      await device.close(code);
      expect(device.decided.at(-1)).toEqual({
        ref: bad,
        code: code === 4413 ? "too_large" : "bad_frame",
      });
      expect([...device.core.rejected.values()]).toMatchObject([{ ref: bad, change: { seq: 2 } }]);
      await again(1);
      expect(device.changes).toMatchObject([
        { seq: 2, ops: [] },
        { seq: 3, ops: [set("/a", 3)] },
      ]);
      expect((await new Device(store).start(false)).core.replica.pending).toMatchObject([
        { change: { seq: 2, ops: [] } },
        { change: { seq: 3 } },
      ]);
    },
  );
});

describe("close codes and coming back", () => {
  test("full jitter: a random part of a bound that doubles, up to 30 s", async () => {
    const device = await new Device().join({});
    device.random = 1 - Number.EPSILON;
    const bounds = [];
    for (let i = 0; i < 9; i++) {
      await device.close(1006);
      const wait = (device.timers.get("connect") ?? 0) - device.now;
      bounds.push(Math.round(wait));
      await device.advance(wait + 1);
    }
    expect(bounds).toEqual([500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    device.random = 0;
    await device.close(1006);
    expect(device.timers.get("connect")).toBe(device.now);
  });

  test("a connection that stood a while makes the next attempt a first one", async () => {
    const device = await new Device().join({});
    for (let i = 0; i < 5; i++) {
      await device.close(1006);
      await device.reopen();
    }
    await device.resumed([]);
    await device.advance(4_000);
    await device.frame({ type: "heartbeat", t: null, server_time: 0 });
    await device.advance(2_000);
    await device.close(1006);
    expect((device.timers.get("connect") ?? 0) - device.now).toBe(250);
  });

  test("back at once when the network is", async () => {
    const device = await new Device().join({});
    device.feed({ type: "network", online: false });
    await device.close(1006);
    expect(device.core.status.connection).toBe("offline");
    device.random = 0.9;
    device.feed({ type: "network", online: true });
    expect(device.connected).toBe(true);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test.each([
    [4403, "forbidden"],
    [4404, "session_not_found"],
    [4410, "session_ended"],
  ])("L8, F1: %d ends it; the outbox stays", async (code, name) => {
    const device = await new Device().join({ a: 0 });
    await device.stored(set("/a", 1));
    await device.close(code);
    await device.advance(3_600_000);
    expect(device.connects).toBe(1);
    expect(device.core.status).toMatchObject({
      connection: "closed",
      pending: 1,
      error: { code: name },
    });
    await device.stored(set("/a", 2));
    expect((await new Device(device.store).start(false)).shown).toEqual({ a: 2 });
  });

  test("4401 asks for a fresh token by connecting again", async () => {
    const device = await new Device().join({});
    await device.close(4401);
    expect(device.core.status.error?.code).toBe("not_authenticated");
    await device.advance((device.timers.get("connect") ?? 0) - device.now);
    device.feed({ type: "opened", token: "fresh" });
    expect(device.hello.token).toBe("fresh");
    await device.resumed([]);
    expect(device.core.status.error).toBeNull();
  });

  test("F3: 4409: comes back while it holds its lock", async () => {
    const device = await new Device().join({});
    await device.close(4409);
    await device.advance(60_000);
    expect(device.connected).toBe(true);
    expect(device.asked).toBeNull();
  });

  test("F3: 4409 without a lock: comes back under another name", async () => {
    const device = await new Device().start();
    device.feed({ type: "lead", leading: true, exclusive: false });
    device.open();
    await device.welcome({});
    await device.close(4409);
    expect(device.asked).not.toBeNull();
  });

  test("1012 waits a random part of reconnect_jitter_ms", async () => {
    const device = await new Device().join({}, { reconnect_jitter_ms: 8_000 });
    device.random = 0.25;
    await device.close(1012);
    expect(device.timers.get("connect")).toBe(device.now + 2_000);
  });

  test("4429 waits longer", async () => {
    const device = await new Device().join({});
    await device.close(4429);
    expect((device.timers.get("connect") ?? 0) - device.now).toBe(2_000);
  });

  test("a lock that was lost ends the line; another tab leads", async () => {
    const device = await new Device().join({});
    device.feed({ type: "lead", leading: false, exclusive: true });
    expect(device.connected).toBe(false);
    await device.advance(60_000);
    expect(device.connects).toBe(1);
  });
});

describe("heartbeats", () => {
  const beats = (device: Device) => device.sent.filter(({ type }) => type === "heartbeat").length;

  test("H1: after interval_ms of silence, and no sooner", async () => {
    const device = await new Device().join({});
    await device.advance(4_999);
    expect(beats(device)).toBe(0);
    await device.advance(1);
    expect(beats(device)).toBe(1);
    await device.frame({ type: "heartbeat", t: null, server_time: 0 });
    await device.advance(4_999);
    expect(beats(device)).toBe(1);
  });

  test("H2: silence for timeout_ms means reconnecting", async () => {
    const device = await new Device().join({});
    await device.advance(14_999);
    expect(device.core.status.connection).toBe("online");
    await device.advance(1);
    expect(device.core.status.connection).toBe("reconnecting");
    expect(device.connected).toBe(false);
  });

  test("H1: any frame is a sign of life", async () => {
    const device = await new Device().join({});
    for (let version = 1; version < 20; version++) {
      await device.advance(4_000);
      await device.frame(commit(version, []));
    }
    expect(device.core.status.connection).toBe("online");
  });

  // Found by the simulator: a dead line looked fresh for a day.
  test("H2: a clock that is set back hides no silence", async () => {
    const device = await new Device().join({});
    device.now -= 86_400_000;
    device.feed({ type: "timer", name: "beat" });
    await device.advance(15_000);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("timers that were held back prove nothing: first a sign of life is asked for", async () => {
    const device = await new Device().join({});
    device.timers.clear();
    device.now += 60_000;
    device.feed({ type: "timer", name: "beat" });
    expect(device.core.status.connection).toBe("online");
    expect(beats(device)).toBe(1);
    await device.advance(10_000);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("a user may take all day to sign in; then it is the server that is waited for", async () => {
    const device = await new Device().start();
    await device.advance(86_400_000);
    expect(device.connects).toBe(1);
    device.feed({ type: "dialing" });
    await device.advance(15_000);
    expect(device.connected).toBe(false);
  });

  test("a welcome that does not come ends the attempt", async () => {
    const device = await new Device().start();
    device.open();
    await device.advance(15_000);
    expect(device.connected).toBe(false);
    await device.advance(1_000);
    expect(device.connected).toBe(true);
  });
});

describe("a disk that fails", () => {
  test("B4: says so, goes on in memory, and pretends nothing", async () => {
    const device = await new Device().join({ a: 0 });
    device.failing = "QuotaExceededError";
    const ref = await device.stored(set("/a", 1));
    expect(device.kept).toEqual([[ref, false]]);
    expect(device.core.status).toMatchObject({
      storage: "memory",
      savedOnDevice: false,
      sharedTabs: false,
      error: { code: "storage", message: "QuotaExceededError" },
    });
    expect(device.pokes.at(-1)).toBe(true);
    // The server is as good as ever.
    await device.stored(set("/a", 2));
    expect(device.changes.map(({ seq }) => seq)).toEqual([1, 2]);
    await device.acknowledge(1, replaced("/a", 1), 1);
    expect(device.core.status.saved).toBe(false);
  });

  test("is tried again, and takes all that it missed", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ a: 0 });
    device.failing = "QuotaExceededError";
    await device.stored(set("/a", 1));
    await device.stored(set("/a", 2));
    await device.acknowledge(1, replaced("/a", 1), 1);
    device.failing = null;
    await device.advance(5_000);
    expect(device.core.status).toMatchObject({
      storage: "durable",
      savedOnDevice: true,
      error: null,
    });
    const after = await new Device(store).start(false);
    expect(after.confirmed).toEqual({ a: 1 });
    expect(after.core.replica.pending).toMatchObject([{ change: { seq: 2 } }]);
  });

  test("is tried again also after the server has ended the session: what is here can be exported", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ a: 0 });
    device.failing = "QuotaExceededError";
    await device.stored(set("/a", 1));
    await device.close(4410);
    await device.stored(set("/a", 2));
    device.failing = null;
    await device.advance(5_000);
    expect(device.core.status).toMatchObject({ connection: "closed", savedOnDevice: true });
    const after = await new Device(store).start(false);
    expect(after.shown).toEqual({ a: 2 });
  });

  test("B5: a disk that went back in time: the next page finds out and sends nothing twice", async () => {
    const store = durableMemory();
    const device = await new Device(store).join({ n: 0 });
    await device.stored({ op: "inc", path: "/n", by: 1 });
    device.failing = "QuotaExceededError";
    await device.stored({ op: "inc", path: "/n", by: 10 });
    const [one, two] = device.changes;

    const after = await new Device(store).start();
    after.open();
    await after.welcome({ n: 11 }, { version: 2, seq: 2, seq_at: two?.at ?? 0 });
    expect(after.asked).not.toBeNull();
    after.feed({
      type: "history",
      commits: [one, two].map((change) => ({
        at: 1,
        client_at: change?.at ?? 0,
        by: by(device.core.clientId, change?.seq ?? 0),
      })),
    });
    await after.settle();
    after.open();
    await after.welcome({ n: 11 }, { version: 2 });
    expect(after.changes).toEqual([]);
    expect(after.shown).toEqual({ n: 11 });
  });
});
