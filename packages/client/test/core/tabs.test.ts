import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Commit, Operation } from "../../src/core/wire";
import { Device, durableMemory } from "../support/device";
import { by, commit } from "../support/frames";
import { TextServer } from "../support/texts";

const set = (path: string, value: number): Operation => ({ op: "set", path, value });
const type = (index: number, insert: string): Operation => ({
  op: "splice",
  path: "/t",
  index,
  delete: 0,
  insert,
});

/** What a poke makes another tab do. */
async function look(device: Device): Promise<void> {
  device.run([{ type: "store" }]);
  await device.settle();
}

async function pair(state = { a: 0, t: "" } as Record<string, never | number | string>) {
  const store = durableMemory();
  const leader = await new Device(store).join(state);
  const follower = await new Device(store).start(false);
  return { store, leader, follower };
}

describe("one outbox for all tabs (protocol, 'The outbox')", () => {
  test("a follower shows the leader's state and changes, and has no line", async () => {
    const { leader, follower } = await pair();
    await leader.stored(set("/a", 1));
    await look(follower);
    expect(follower.shown).toEqual({ a: 1, t: "" });
    expect(follower.core.clientId).toBe(leader.core.clientId);
    expect(follower.connects).toBe(0);
  });

  test("B3: a follower's change is stored by itself and sent by the leader, once", async () => {
    const { leader, follower } = await pair();
    const ref = await follower.stored(set("/a", 1));
    expect(follower.kept).toEqual([[ref, true]]);
    expect(follower.core.status).toMatchObject({ pending: 1, savedOnDevice: true });
    expect(follower.sent).toEqual([]);
    await look(leader);
    await look(leader);
    expect(leader.shown).toEqual({ a: 1, t: "" });
    expect(leader.changes).toMatchObject([{ seq: 1, ops: [set("/a", 1)] }]);
    await leader.acknowledge(1, [{ op: "replace", path: "/a", value: 1 }], 1);
    await look(follower);
    expect(follower.decided).toEqual([{ ref, code: undefined }]);
    expect(follower.core.status).toMatchObject({ pending: 0, saved: true });
    expect(follower.confirmed).toEqual({ a: 1, t: "" });
  });

  test("a follower hears that its change was refused, and has it in its list", async () => {
    const { leader, follower } = await pair();
    const ref = await follower.stored(set("/a", 1));
    await look(leader);
    await leader.frame({ type: "rejected", seq: 1, code: "forbidden", message: "no" });
    await look(follower);
    expect(follower.decided).toEqual([{ ref, code: "forbidden" }]);
    expect([...follower.core.rejected.keys()]).toEqual([ref]);
    expect(follower.shown).toEqual({ a: 0, t: "" });
  });

  test("B2: a number is given out only after every earlier change was applied", async () => {
    const { leader, follower } = await pair();
    leader.change(type(0, "leader "));
    follower.change(type(0, "follower"));
    await Promise.all([leader.settle(), follower.settle()]);
    await look(leader);
    await look(follower);
    expect(leader.shown).toEqual(follower.shown);
    expect(leader.changes.map(({ seq }) => seq)).toEqual([1, 2]);
    const positions = leader.changes.map(({ ops }) => (ops[0] as { index: number }).index);
    // The one that came second was carried over the first before it got its number.
    expect(positions).toEqual([0, leader.shown?.t === "leader follower" ? 7 : 8]);
  });

  test("B3: the leader dies: another reads the outbox and goes on", async () => {
    const { leader, follower } = await pair();
    await leader.stored(set("/a", 1));
    await follower.stored(set("/a", 2));
    // The leader never looked, and is gone.
    follower.feed({ type: "lead", leading: true, exclusive: true });
    await follower.settle();
    follower.open();
    expect(follower.hello).toMatchObject({ client_id: leader.core.clientId, seq: 0, epoch: "E" });
    await follower.resumed(
      [commit(1, [{ op: "replace", path: "/a", value: 1 }], by(leader.core.clientId, 1))],
      { seq: 1, seq_at: leader.now },
    );
    expect(follower.changes.map(({ seq }) => seq)).toEqual([2]);
    expect(follower.shown).toEqual({ a: 2, t: "" });
  });

  test("followers take a new name, and new numbers, from the store", async () => {
    const { leader, follower } = await pair();
    await leader.stored(set("/a", 1));
    const mine = await follower.stored(set("/a", 2));
    await look(leader);
    await leader.frame({ type: "error", code: "seq_reused", message: "" });
    const author = by(leader.core.clientId, 1);
    leader.feed({ type: "history", commits: [{ by: author, at: 1, client_at: leader.now }] });
    // Meanwhile the follower goes on under the old name.
    const late = await follower.stored(set("/a", 3));
    await leader.settle();
    await look(leader);
    await look(follower);
    expect(follower.core.clientId).toBe(leader.core.clientId);
    for (const { core } of [leader, follower]) {
      expect(core.replica.pending.map(({ ref, change }) => [ref, change.seq])).toEqual([
        [mine, 1],
        [late, 2],
      ]);
      expect(core.status.savedOnDevice).toBe(true);
    }
    expect(follower.shown).toEqual({ a: 3, t: "" });
  });

  test("another epoch reaches the followers", async () => {
    const { leader, follower } = await pair();
    await follower.stored(set("/a", 1));
    await look(leader);
    await leader.close(1006);
    await leader.reopen();
    await leader.welcome({ a: 5, t: "new" }, { epoch: "F", version: 2 });
    await look(follower);
    expect(follower.core.replica.confirmed).toMatchObject({ epoch: "F", version: 2 });
    expect(follower.shown).toEqual({ a: 1, t: "new" });
    await follower.stored(set("/a", 2));
    expect(follower.core.replica.pending.map(({ change }) => change.epoch)).toEqual(["E", "F"]);
  });

  test("L7: a follower hears that the application is too old, and keeps what it changes", async () => {
    const { leader, follower } = await pair();
    await leader.frame({ type: "error", code: "upgrade_required", message: "reload" });
    for (let i = 0; i < 2; i++) follower.feed({ type: "mirror", line: leader.core.view });
    expect(follower.core.status).toMatchObject({ readOnly: true, connection: "online" });
    expect(follower.events.slice(1)).toEqual([
      { type: "upgradeRequired", detail: { message: "reload" } },
    ]);
    await follower.stored(set("/a", 1));
    await look(leader);
    expect(leader.changes).toEqual([]);
    expect(leader.core.status).toMatchObject({ pending: 1, savedOnDevice: true });
  });

  test("a follower mirrors what the leader's line does", async () => {
    const { leader, follower } = await pair();
    expect(follower.core.status.connection).toBe("connecting");
    follower.feed({ type: "mirror", line: leader.core.view });
    expect(follower.core.status).toMatchObject({ connection: "online", sharedTabs: true });
    await leader.close(4404);
    follower.feed({ type: "mirror", line: leader.core.view });
    expect(follower.core.status).toMatchObject({
      connection: "closed",
      error: { code: "session_not_found" },
    });
  });

  test("where the shared store fails, a follower goes on as a client of its own", async () => {
    const { leader, follower } = await pair();
    await follower.stored(set("/a", 1));
    follower.failing = "QuotaExceededError";
    const own = follower.change(set("/a", 2));
    await follower.settle();
    expect(follower.core.clientId).not.toBe(leader.core.clientId);
    expect(follower.core.status).toMatchObject({
      storage: "memory",
      sharedTabs: false,
      savedOnDevice: false,
    });
    // What the shared outbox has is the leader's to send.
    expect(follower.core.replica.pending.map(({ ref }) => ref)).toEqual([own]);
  });

  test("what it leaves to the others is not waited for there for ever", async () => {
    const { follower } = await pair();
    const left = await follower.stored(set("/a", 1));
    follower.failing = "QuotaExceededError";
    follower.change(set("/a", 2));
    await follower.settle();
    expect(follower.decided).toEqual([{ ref: left, code: "handed_over" }]);
  });

  test("B2: whoever writes when: all tabs end with one outbox, in one order, without gaps", async () => {
    const step = fc.record({
      tab: fc.nat(2),
      act: fc.constantFrom("type", "look", "both", "foreign", "acknowledge"),
      at: fc.nat(8),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 25 }), async (steps) => {
        const store = durableMemory();
        const leader = await new Device(store).join({ t: "", n: 0 });
        const tabs = [
          leader,
          await new Device(store).start(false),
          await new Device(store).start(false),
        ];
        let version = 0;
        for (const { tab, act, at } of steps) {
          const device = tabs[tab] ?? leader;
          const text = (one: Device) => String(one.shown?.t);
          if (act === "type") await device.stored(type(Math.min(at, text(device).length), `${at}`));
          if (act === "look") await look(device);
          if (act === "both") {
            for (const one of tabs) one.change(type(Math.min(at, text(one).length), "b"));
            await Promise.all(tabs.map((one) => one.settle()));
          }
          if (act === "foreign") {
            const n = { op: "replace", path: "/n", value: at } as const;
            await leader.frame(commit(++version, [n]));
          }
          const first = leader.changes.find(
            ({ seq }) => seq === (leader.core.mark?.decided ?? 0) + 1,
          );
          if (act === "acknowledge" && first) {
            const { index, insert } = first.ops[0] as { index: number; insert: string };
            const patch = { op: "str_ins", path: "/t", pos: index, str: insert } as const;
            await leader.acknowledge(++version, [patch], first.seq);
          }
        }
        for (const one of [...tabs, ...tabs]) await look(one);
        const [one, ...others] = tabs.map(({ core }) => ({
          shown: core.replica.shown,
          confirmed: core.replica.confirmed,
          pending: core.replica.pending.map(({ ref, change }) => [ref, change.seq, change.ops]),
        }));
        for (const other of others) expect(other).toEqual(one);
        const sent = leader.changes.map(({ seq }) => seq);
        expect(sent).toEqual(sent.map((_, index) => index + 1));
        for (const { decided, kept } of tabs) {
          expect(new Set(decided.map(({ ref }) => ref)).size).toBe(decided.length);
          expect(kept.every(([, durable]) => durable)).toBe(true);
        }
      }),
      { numRuns: 150 },
    );
  });

  test("B2, TX4: tabs and somebody else type into one text: each character once, in its order", async () => {
    const step = fc.record({
      who: fc.nat(3),
      act: fc.constantFrom("type", "type", "type", "all", "look", "decide", "hear", "hear"),
      back: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 20, maxLength: 60 }), async (steps) => {
        const server = new TextServer();
        const store = durableMemory();
        const leader = await new Device(store).join({ t: "" });
        const tabs = [
          leader,
          await new Device(store).start(false),
          await new Device(store).start(false),
        ];
        const other = await new Device().join({ t: "" });
        const writers = [...tabs, other];
        for (const one of [leader, other]) server.seat(one.core.clientId);
        const typed = writers.map(() => "");
        const gone = new Set<string>();
        let made = 0;
        const down = new Map<Device, Commit[]>([leader, other].map((one) => [one, []]));

        const write = (at: number, back = false) => {
          const device = writers[at] as Device;
          const text = String(device.shown?.t);
          const last = typed[at]?.at(-1) ?? "";
          const caret = last === "" ? text.length >> 1 : text.indexOf(last) + 1;
          const next = text[caret];
          // Nobody removes what is the last of somebody's: that is where they go on.
          if (back && next !== undefined && !typed.some((own) => own.endsWith(next))) {
            gone.add(next);
            device.change({ op: "splice", path: "/t", index: caret, delete: 1, insert: "" });
          }
          const letter = String.fromCharCode(0x4e00 + made++);
          typed[at] += letter;
          device.change(type(caret, letter));
        };
        const decide = (device: Device) => {
          for (const change of device.changes) {
            const commit = server.decide(device.core.clientId, change);
            if (commit) for (const list of down.values()) list.push(commit);
          }
          device.sent = [];
        };
        const hear = async (device: Device, count: number) => {
          for (const commit of down.get(device)?.splice(0, count) ?? []) await device.frame(commit);
        };

        for (const { who, act, back } of steps) {
          const device = writers[who] as Device;
          const line = device === other ? other : leader;
          if (act === "type") write(who, back);
          if (act === "all") for (const at of writers.keys()) write(at);
          if (act === "type" || act === "all") {
            await Promise.all(writers.map((one) => one.settle()));
          }
          if (act === "look" && device !== other) await look(device);
          if (act === "decide") decide(line);
          if (act === "hear") await hear(line, 6);
        }
        for (let round = 0; round < 3; round++) {
          for (const tab of tabs) await look(tab);
          for (const one of [leader, other]) decide(one);
          for (const one of [leader, other]) await hear(one, Number.POSITIVE_INFINITY);
        }
        for (const tab of tabs) await look(tab);
        for (const { shown, core } of writers) {
          expect(core.replica.pending).toEqual([]);
          expect(shown).toEqual({ t: server.text });
        }
        for (const own of typed) {
          const kept = [...own].filter((letter) => !gone.has(letter)).join("");
          expect([...server.text].filter((letter) => own.includes(letter)).join("")).toBe(kept);
        }
        expect(server.text.length).toBe(made - gone.size);
      }),
      { numRuns: Number(process.env.TEXT_RUNS ?? 150) },
    );
  }, 60_000);
});
