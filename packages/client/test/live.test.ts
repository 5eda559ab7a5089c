import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Store } from "../src";
import { type ConnectOptions, connect, memoryStore, type Session } from "../src";
import type { Environment } from "../src/env";
import { LiveServer, Wire } from "./support/live";
import { until } from "./support/page";

interface Doc {
  title: string;
  n: number;
  list: { id?: string; v: number }[];
  by: Record<string, number>;
}

const EMPTY: Doc = { title: "", n: 0, list: [], by: {} };

const server = new LiveServer();
const open: Session<Doc>[] = [];

beforeAll(async () => void (await server.start()), 30_000);
afterAll(async () => {
  await Promise.all(open.map((session) => session.close()));
  await server.stop();
});

function join(id: string, options: Partial<ConnectOptions> = {}): Session<Doc> & { wire: Wire } {
  const wire = new Wire();
  const session = connect<Doc>({
    url: server.url,
    session: id,
    create: { state: EMPTY },
    store: memoryStore(),
    env: wire.env(),
    ...options,
  });
  open.push(session);
  return Object.assign(session, { wire });
}

/** What the server has, as a client that knows nothing is told. */
async function stored(id: string): Promise<{ state: Doc; version: number }> {
  const reader = join(id, { create: {} });
  await reader.ready;
  const { confirmed, version } = reader;
  await reader.close();
  return { state: confirmed as Doc, version };
}

test("every operation ends on the real server as this client expected", async () => {
  const session = join("operations");
  await session.ready;
  session.update((draft) => {
    draft.title = "Grüße 😀";
    draft.list.push({ v: 1 }, { v: 2 }, { v: 3 });
    draft.by.constructor = 5 as never;
  });
  session.set("/by/__proto__", 7);
  session.splice("/title", 6, 1, "🎈!");
  session.inc("/n", 2.5);
  const [first, second] = session.state.list;
  session.move(`/list/#${first?.id}`);
  session.insert("/list", { id: "x", v: 9 }, second?.id);
  session.insert("/list", { id: "x", v: 10 }, null);
  session.unset(`/list/#${second?.id}`);
  session.change([
    { op: "test", path: "/n", value: 2.5 },
    { op: "set", path: "/n", value: 3 },
  ]);
  session.insert("/list", { id: "y", v: 11 }, "gone");
  session.set("/list/#z", { id: "z", v: 12 });
  const expected = session.state;
  await until(() => session.status.saved);
  expect(session.rejected).toEqual([]);
  expect(session.confirmed).toEqual(expected);
  expect((await stored("operations")).state).toEqual(expected);
});

test("the server is killed in mid-typing: all is there, once, in order", async () => {
  const session = join("killed");
  await session.ready;
  let text = "";
  for (let i = 0; i < 150; i++) {
    const word = `${i} `;
    session.splice("/title", text.length, 0, word);
    session.inc("/n");
    text += word;
    if (i === 50) {
      await server.kill();
      void server.start();
    }
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  expect(session.state).toMatchObject({ title: text, n: 150 });
  await until(() => session.status.saved, "saved after the restart", 15_000);
  expect((await stored("killed")).state).toMatchObject({ title: text, n: 150 });
}, 30_000);

test("every acknowledgement is lost: inc ends exact", async () => {
  const session = join("lost");
  await session.ready;
  await until(() => session.status.connection === "online");
  for (let round = 0; round < 5; round++) {
    session.wire.deaf = true;
    for (let i = 0; i < 20; i++) session.inc("/n");
    const wanted = (round + 1) * 20;
    for (let n = 0; n < wanted; ) ({ n } = (await stored("lost")).state);
    session.wire.cut();
    session.wire.deaf = false;
    await until(() => session.status.saved);
    expect(session.state.n).toBe(wanted);
  }
  expect(await stored("lost")).toMatchObject({ version: 100, state: { n: 100 } });
}, 30_000);

test("RE1, RE2: a version is restored, and that is undone", async () => {
  const session = join("restored");
  await session.ready;
  await session.set("/title", "one").acknowledged;
  const first = session.version;
  await session.set("/title", "two").acknowledged;
  await session.restore({ version: first }).acknowledged;
  expect(session.state.title).toBe("one");
  await session.restore({ version: first + 1 }).acknowledged;
  expect(session.state.title).toBe("two");
  await expect(session.restore({ checkpoint_id: "latest" }).acknowledged).rejects.toMatchObject({
    code: "no_such_checkpoint",
  });
});

test("a session knows which of its devices this one is", async () => {
  const [one, two] = [join("devices"), join("devices")];
  await Promise.all([one.ready, two.ready]);
  await until(() => one.devices.length === 2);
  expect(new Set(one.devices.map((device) => device.id))).toEqual(
    new Set([one.deviceId, two.deviceId]),
  );
  expect(one.deviceId).not.toBe(two.deviceId);
});

test("two devices, offline and back, end with one state", async () => {
  const one = join("pair");
  const two = join("pair");
  await Promise.all([one.ready, two.ready]);
  for (let round = 0; round < 6; round++) {
    if (round % 2 === 1) for (const { wire } of [one, two]) wire.cut();
    for (const [name, session] of [
      ["one", one],
      ["two", two],
    ] as const) {
      for (let i = 0; i < 10; i++) {
        session.update((draft) => {
          draft.by[name] = round * 10 + i;
          if (i % 3 === 0) draft.list.push({ v: i });
          if (i % 4 === 0) draft.list.shift();
        });
        session.inc("/n");
      }
      session.set("/title", `${name} ${round}`);
    }
    await until(() => one.status.saved && two.status.saved && one.version === two.version);
  }
  expect(one.state).toEqual(two.state);
  expect(one.state).toMatchObject({ n: 120, by: { one: 59, two: 59 } });
  expect(one.rejected).toEqual([]);
  const { state, version } = await stored("pair");
  expect(state).toEqual(one.state);
  expect(version).toBe(one.version);
  // Both wrote one field without having seen the other's: the value that lost is kept.
  await until(() => one.conflicts.length + two.conflicts.length > 0);
}, 30_000);

test("a refusal of the real server ends in the list", async () => {
  const session = join("refused");
  await session.ready;
  const change = session.change([{ op: "restore", version: 99 }]);
  await expect(change.acknowledged).rejects.toMatchObject({ name: "ReattachError" });
  await until(() => session.rejected.length === 1);
  await session.inc("/n").acknowledged;
});

test("a cloned profile: the two names come apart, nothing is lost or twice", async () => {
  const disk = { ...memoryStore(), durable: true };
  const first = join("cloned", { store: { ...disk, close() {} } });
  await first.ready;
  await first.inc("/n", 1).acknowledged;
  await first.close();
  const twin: Store = { ...memoryStore(), durable: true };
  const rows = ["meta", "snapshot", "conflicts", "commit/0000000000000001"];
  const prefix = `${[server.url, "", "cloned"].map(encodeURIComponent).join("/")}/tab/0/`;
  await disk.transaction("readonly", async (tx) => {
    const values = await Promise.all(rows.map((row) => tx.get(prefix + row)));
    await twin.transaction("readwrite", async (copy) => {
      for (const [at, row] of rows.entries()) {
        if (values[at] !== undefined) copy.put(prefix + row, values[at]);
      }
    });
  });
  const offline = { url: server.url };
  const one = join("cloned", { store: disk, ...offline });
  const two = join("cloned", { store: twin, env: { ...new Wire().env(), channel: undefined } });
  await Promise.all([one.ready, two.ready]);
  one.inc("/n", 10);
  await new Promise((resolve) => setTimeout(resolve, 3));
  two.inc("/n", 100);
  // They may send each other away a few times first, each with its back-off.
  const settled = () => one.status.saved && two.status.saved && one.version === two.version;
  await until(settled, "the two are saved and agree", 15_000);
  expect((await stored("cloned")).state.n).toBe(111);
  expect(one.state.n).toBe(111);
}, 20_000);

test("TX3, TX4: three devices type into one text, cut off and back: each character once, in its order", async () => {
  const devices = [join("typed"), join("typed"), join("typed")];
  await Promise.all(devices.map(({ ready }) => ready));
  const order = ["", "", ""];
  const removed = new Set<string>();
  let made = 0;
  for (let round = 0; round < 30; round++) {
    for (const [at, session] of devices.entries()) {
      // Now and then all that it hears is late, or lost.
      session.wire.deaf = (round + at) % 7 > 4;
      if ((round + 2 * at) % 9 === 0) session.wire.cut();
      const text = [...session.state.title];
      // Behind what it typed last, so that what it types is in order; every second is no BMP.
      const last = [...(order[at] ?? "")].at(-1);
      let caret = last === undefined ? text.length >> 1 : text.indexOf(last) + 1;
      for (let i = 0; i < 3; i++) {
        const letter = String.fromCodePoint((made % 2 ? 0x20000 : 0x4e00) + made++);
        session.splice("/title", caret++, 0, letter);
        order[at] += letter;
      }
      const other = text[(round * 5 + at) % (text.length || 1)];
      if (round % 4 === 3 && other !== undefined && !order.some((one) => one.endsWith(other))) {
        session.splice("/title", [...session.state.title].indexOf(other), 1, "");
        removed.add(other);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  for (const { wire } of devices) {
    wire.deaf = false;
    wire.cut();
  }
  const [first] = devices;
  await until(() => devices.every((one) => one.status.saved && one.version === first?.version));
  const { state } = await stored("typed");
  for (const session of devices) {
    expect(session.state).toEqual(state);
    expect(session.rejected).toEqual([]);
    expect(session.conflicts).toEqual([]);
  }
  const letters = [...state.title];
  expect(new Set(letters).size).toBe(letters.length);
  for (const typed of order) {
    // Who missed commits may have taken out something that is there anew: then it stays.
    const kept = (letter: string) => !removed.has(letter);
    expect(letters.filter((letter) => typed.includes(letter)).filter(kept)).toEqual(
      [...typed].filter(kept),
    );
  }
}, 30_000);

test("K1, RE1: a checkpoint has what was changed before it, is told to all, and can be restored", async () => {
  const [one, two] = [join("marks"), join("marks")];
  const told: unknown[] = [];
  two.addEventListener("checkpointSaved", ({ detail }) => told.push(detail.checkpoint));
  await until(() => two.status.connection === "online");
  await one.ready;
  one.set("/title", "before");
  const mark = await one.saveCheckpoint("Draft", { page: 3 });
  expect(mark).toMatchObject({ name: "Draft", kind: "named", data: { page: 3 } });
  expect(one.confirmed.title).toBe("before");
  expect(mark.version).toBe(one.version);
  await until(() => told.length === 1);
  expect(told).toEqual([mark]);
  await one.set("/title", "after").acknowledged;
  await one.restore(mark).acknowledged;
  expect(one.state.title).toBe("before");
  await one.restore(mark.version + 1).acknowledged;
  expect(one.state.title).toBe("after");
  const listed = await one.checkpoints();
  expect(listed.map(({ kind }) => kind)).toEqual(["before_restore", "before_restore", "named"]);
  expect(listed.at(-1)).toEqual(mark);
  await expect(one.saveCheckpoint("Draft", "x".repeat(5_000))).rejects.toMatchObject({
    code: "too_large",
  });
});

test("a checkpoint that is saved without a network is saved when it is back", async () => {
  const session = join("late-mark");
  await until(() => session.status.connection === "online");
  await server.kill();
  session.inc("/n");
  await until(() => session.status.connection !== "online");
  const mark = session.saveCheckpoint();
  await server.start();
  expect(await mark).toMatchObject({ kind: "named", name: null, version: 1 });
}, 30_000);

test("who closes a session does not wait for its checkpoint for ever", async () => {
  const session = join("closed-mark");
  await until(() => session.status.connection === "online");
  session.wire.deaf = true;
  session.inc("/n");
  const mark = session.saveCheckpoint();
  await session.close();
  await expect(mark).rejects.toMatchObject({ code: "closed" });
});

describe("an outbox that is exported", () => {
  test("takes effect once: imported on another device, again, and sent by its own", async () => {
    const store = { ...memoryStore(), durable: true };
    const lost = join("exported", { store });
    await lost.ready;
    await until(() => lost.status.connection === "online");
    await server.kill();
    for (let i = 0; i < 3; i++) lost.inc("/n");
    await lost.set("/by/x", 1).stored;
    const file = JSON.stringify(lost.export());
    await lost.close();
    await server.start();
    const other = join("exported");
    expect(await other.import(JSON.parse(file))).toEqual({ version: 4, refused: [] });
    expect(await other.import(JSON.parse(file))).toEqual({ version: 4, refused: [] });
    await until(() => other.version === 4);
    expect(other.state).toMatchObject({ n: 3, by: { x: 1 } });
    const back = join("exported", { store });
    await back.ready;
    await until(() => back.status.saved && back.status.connection === "online");
    expect(back.rejected).toEqual([]);
    expect(await stored("exported")).toMatchObject({ version: 4, state: { n: 3 } });
  }, 30_000);

  // Without a WebSocket all changes go up that way.
  test.skipIf(process.env.REATTACH_TEST_TRANSPORT === "sse")(
    "imported where it comes from: what waits goes by itself, under the name that it has",
    async () => {
      const env = new Wire().env();
      const asked: string[] = [];
      const fetch: Environment["fetch"] = (input, init) => {
        asked.push(String(input));
        return globalThis.fetch(input, init);
      };
      const session = join("homeward", { env: { ...env, fetch } });
      await until(() => session.status.connection === "online");
      const { client_id } = session.export();
      session.inc("/n");
      session.restore({ version: 9_999 });
      const last = session.inc("/n");
      await until(() => session.export().changes.every(({ seq }) => seq > 0));
      const file = session.export();
      const imported = session.import(file);
      const done = { version: 2, refused: [{ seq: 2, code: "version_gone" }] };
      expect(await imported).toMatchObject(done);
      expect(await session.import(file)).toMatchObject(done);
      await last.acknowledged;
      expect(session.export().client_id).toBe(client_id);
      expect(session.state.n).toBe(2);
      expect(asked.filter((url) => url.endsWith("/changes"))).toEqual([]);
    },
  );

  test("before the server ever had the session: it is of the epoch that there is", async () => {
    const offline = join("early", { url: "http://127.0.0.1:9" });
    await offline.ready;
    await offline.inc("/n").stored;
    const file = offline.export();
    expect(file.changes).toMatchObject([{ seq: 1, epoch: null }]);
    const other = join("early");
    expect(await other.import(file)).toEqual({ version: 1, refused: [] });
    await until(() => other.state.n === 1);
  });

  test("says what the server refused, and goes on behind it, in as many parts as it takes", async () => {
    const offline = join("parts", { url: "http://127.0.0.1:9" });
    await offline.ready;
    for (let i = 0; i < 9; i++) offline.set("/title", `${i}`.repeat(100_000));
    offline.change([
      { op: "test", path: "/n", value: 0 },
      { op: "inc", path: "/n", by: 1 },
    ]);
    await until(() => offline.export().changes.every(({ seq }) => seq > 0));
    const other = join("parts");
    await other.ready;
    await other.inc("/n").acknowledged;
    const done = await other.import(offline.export());
    await until(() => other.version === done.version);
    expect(other.state.title).toBe("8".repeat(100_000));
    expect(done.refused).toMatchObject([{ seq: 10, code: "test_failed" }]);
  });

  test("of another session, or of a moment ago, is not taken", async () => {
    const session = join("mine");
    await session.ready;
    const file = session.export();
    await expect(session.import({ ...file, session_id: "other" })).rejects.toMatchObject({
      code: "bad_outbox",
    });
    session.wire.deaf = true;
    session.inc("/n");
    await expect(session.import(session.export())).rejects.toThrow(/stored/);
    await expect(session.import({} as never)).rejects.toThrow(/export/);
    expect(await session.import(file)).toMatchObject({ refused: [] });
  });
});
