import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { points } from "../../src/core/text";
import type { Change, Commit, Operation, PatchOperation } from "../../src/core/wire";
import { Device, durableMemory } from "../support/device";
import { by, commit } from "../support/frames";
import { TextServer } from "../support/texts";

const splice = (index: number, remove: number, insert: string, path = "/t"): Operation => ({
  op: "splice",
  path,
  index,
  delete: remove,
  insert,
});

async function typing(text: string, ...ops: Operation[]): Promise<Device> {
  const device = await new Device().join({ t: text, list: [{ id: "x", t: "" }] });
  for (const op of ops) await device.stored(op);
  return device;
}

describe("what others committed, as edits", () => {
  test.each<[why: string, patch: PatchOperation[], shown: string]>([
    [
      "text steps stand as they are",
      [
        { op: "str_del", path: "/t", pos: 0, len: 1 },
        { op: "str_ins", path: "/t", pos: 0, str: "AA" },
      ],
      "AAb|cd",
    ],
    ["a replaced text is a plain edit", [{ op: "replace", path: "/t", value: "abXcd" }], "abX|cd"],
    [
      "so is one whose parent was replaced",
      [{ op: "replace", path: "", value: { t: "xabcd", list: [] } }],
      "xab|cd",
    ],
    [
      "one step that is no edit makes the whole commit a plain edit",
      [
        { op: "str_ins", path: "/t", pos: 0, str: "1" },
        { op: "replace", path: "/t", value: "abcd2" },
      ],
      "ab|cd2",
    ],
    ["a text that was removed counts as empty", [{ op: "remove", path: "/t" }], "|"],
    ["so does what is no text any more", [{ op: "replace", path: "/t", value: "" }], "|"],
    ["an equal text is no edit", [{ op: "replace", path: "/t", value: "abcd" }], "ab|cd"],
    [
      "other texts are not this one",
      [{ op: "str_ins", path: "/list/0/t", pos: 0, str: "x" }],
      "ab|cd",
    ],
  ])("TX1, TX2: %s", async (_, patch, shown) => {
    const device = await typing("abcd", splice(2, 0, "|"));
    await device.frame(commit(1, patch));
    expect(device.shown?.t).toBe(shown);
    expect(device.changes[0]?.ops).toEqual([splice(2, 0, "|")]);
  });

  test("TX2: an element keeps its text wherever it goes", async () => {
    const device = await new Device().join({
      list: [
        { id: "x", t: "abcd" },
        { id: "y", t: "abcd" },
      ],
    });
    await device.stored(splice(2, 0, "|", "/list/#x/t"));
    await device.frame(
      commit(1, [
        { op: "str_ins", path: "/list/0/t", pos: 0, str: "1" },
        { op: "move", from: "/list/0", path: "/list/1" },
        { op: "add", path: "/list/0", value: { id: "z", t: "" } },
        { op: "str_ins", path: "/list/1/t", pos: 0, str: "not this one" },
        { op: "str_ins", path: "/list/2/t", pos: 1, str: "2" },
      ]),
    );
    expect(device.shown).toMatchObject({ list: [{ id: "z" }, { id: "y" }, { t: "12ab|cd" }] });
    await device.frame(commit(2, [{ op: "remove", path: "/list/2" }]));
    expect(device.shown).toMatchObject({ list: [{ id: "z" }, { id: "y" }] });
  });
});

describe("an own commit that ended otherwise than it was shown", () => {
  test("TX5: what was typed behind it is carried over what lies between", async () => {
    const device = await typing("old", { op: "set", path: "/t", value: "mine" }, splice(4, 0, "!"));
    expect(device.shown?.t).toBe("mine!");
    await device.frame(commit(1, [{ op: "replace", path: "/t", value: "theirs mine" }]));
    // The own write stands over it, until the server says that it does not.
    expect(device.shown?.t).toBe("mine!");
    await device.acknowledge(2, [], 1);
    expect(device.shown?.t).toBe("theirs mine!");
    expect(device.changes[1]?.ops).toEqual([splice(4, 0, "!")]);
  });

  test("TX5: a refused change has shown its text, too", async () => {
    const device = await typing("ab", splice(0, 0, "no "), splice(4, 0, "|"));
    expect(device.shown?.t).toBe("no a|b");
    await device.frame({ type: "rejected", seq: 1, code: "forbidden", message: "" });
    expect(device.shown?.t).toBe("a|b");
    // Where the second ends is the server's to say, which has never seen the first.
    device.sent = [];
    await device.stored(splice(2, 0, "!"));
    expect(device.changes).toEqual([]);
    await device.acknowledge(1, [{ op: "str_ins", path: "/t", pos: 2, str: "|" }], 2);
    expect(device.shown?.t).toBe("ab|!");
    expect(device.changes).toMatchObject([{ seq: 3, base: 1, ops: [splice(3, 0, "!")] }]);
  });

  test("TX2: a welcome with the whole state is a commit of all that was missed", async () => {
    const device = await typing("ab", splice(1, 0, "1"), splice(3, 0, "2"));
    const at = device.changes[0]?.at ?? null;
    await device.close(1006);
    await device.reopen();
    await device.welcome({ t: "xa1b", list: [] }, { version: 2, seq: 1, seq_at: at });
    expect(device.shown?.t).toBe("xa1b2");
  });
});

describe("an own whole write", () => {
  test.each<[string, Operation]>([
    ["set", { op: "set", path: "/list/#x/t", value: "mine" }],
    ["set of the element", { op: "set", path: "/list/#x", value: { id: "x", t: "mine" } }],
    ["insert of the element", { op: "insert", path: "/list", value: { id: "x", t: "mine" } }],
    ["set of the state", { op: "set", path: "", value: { list: [{ id: "x", t: "mine" }] } }],
  ])("TX6: covers what came before: %s", async (_, whole) => {
    const device = await new Device().join({ list: [{ id: "x", t: "ab" }] });
    for (const op of [splice(1, 0, "1", "/list/#x/t"), whole, splice(4, 0, "!", "/list/#x/t")]) {
      await device.stored(op);
    }
    await device.frame(commit(1, [{ op: "str_ins", path: "/list/0/t", pos: 0, str: "long " }]));
    expect(device.shown).toEqual({ list: [{ id: "x", t: "mine!" }] });
    expect(device.core.replica.pending[0]?.view).toEqual([splice(6, 0, "1", "/list/#x/t")]);
    expect(device.core.replica.pending[2]?.view).toEqual([splice(4, 0, "!", "/list/#x/t")]);
  });

  test("TX6: unset: later edits begin with nothing", async () => {
    const device = await typing("ab", { op: "unset", path: "/t" }, splice(0, 0, "new"));
    await device.frame(commit(1, [{ op: "str_ins", path: "/t", pos: 0, str: "x" }]));
    expect(device.shown?.t).toBe("new");
  });
});

describe("commits that were missed, and come as a whole state", () => {
  /** The server knows exactly how the first reads over them; the client has to guess. */
  async function guessing(store = durableMemory()): Promise<Device> {
    const device = await new Device(store).join({ t: "abcd" });
    await device.stored(splice(1, 2, "X"));
    await device.close(1006);
    await device.reopen();
    await device.welcome({ t: "ad bc" }, { version: 9 });
    device.sent = [];
    return device;
  }

  test("TX4: what is typed behind a guess is sent when it is none any more, as it reads then", async () => {
    const device = await guessing();
    const text = String(device.shown?.t);
    await device.stored(splice([...text].length, 0, "!"));
    await device.stored({ op: "set", path: "/n", value: 1 });
    expect(device.changes).toEqual([]);
    expect(device.core.status).toMatchObject({ pending: 3, savedOnDevice: true });
    // The server had removed nothing: what the first took out was gone already.
    await device.acknowledge(10, [{ op: "str_ins", path: "/t", pos: 1, str: "X" }], 1);
    expect(device.shown).toEqual({ t: "aXd bc!", n: 1 });
    expect(device.changes).toMatchObject([
      { seq: 2, base: 10, ops: [splice(6, 0, "!")] },
      { seq: 3, base: 9 },
    ]);
    await device.stored(splice(0, 0, "?"));
    expect(device.changes.at(-1)).toMatchObject({ seq: 4, base: 10, ops: [splice(0, 0, "?")] });
  });

  test("TX4: so it is by a page that starts anew, and by another tab", async () => {
    const store = durableMemory();
    const device = await guessing(store);
    const follower = await new Device(store).start(false);
    await follower.stored(splice(0, 0, "?"));
    const after = await new Device(store).start();
    after.open();
    await after.resumed([]);
    expect(after.changes).toMatchObject([{ seq: 1, base: 0, ops: [splice(1, 2, "X")] }]);
    await after.acknowledge(10, [{ op: "str_ins", path: "/t", pos: 1, str: "X" }], 1);
    expect(after.shown).toEqual({ t: "?aXd bc" });
    expect(after.changes.at(-1)).toMatchObject({ seq: 2, base: 10, ops: [splice(0, 0, "?")] });
    expect(device.core.clientId).toBe(after.core.clientId);
  });
});

test("TX4: a page that starts anew shows what the one before it showed", async () => {
  const store = durableMemory();
  const device = await new Device(store).join({ t: "ab" });
  await device.stored(splice(1, 0, "1"));
  await device.stored(splice(2, 0, "2"));
  const front: PatchOperation = { op: "str_ins", path: "/t", pos: 0, str: "x" };
  await device.frame(commit(1, [front]));
  await device.acknowledge(2, [{ op: "str_ins", path: "/t", pos: 2, str: "1" }], 1);
  const after = await new Device(store).start();
  expect(after.shown).toEqual({ t: "xa12b" });
  after.open();
  await after.resumed([commit(3, [front])], { seq: 1, seq_at: device.now });
  expect(after.shown?.t).toBe("xxa12b");
  // What is sent is not altered.
  expect(after.changes).toMatchObject([{ seq: 2, base: 0, ops: [splice(2, 0, "2")] }]);
});

test("what is numbered anew reads as it was shown", async () => {
  const device = await typing("ab", splice(1, 0, "1"), splice(2, 0, "2"));
  const [one] = device.changes as [Change];
  const author = by(device.core.clientId, 1);
  await device.frame(commit(1, [{ op: "str_ins", path: "/t", pos: 0, str: "x" }]));
  await device.frame({ type: "error", code: "seq_reused", message: "" });
  device.feed({ type: "history", commits: [{ by: author, at: 1, client_at: one.at }] });
  await device.settle();
  device.sent = [];
  device.open();
  await device.resumed([commit(2, [{ op: "str_ins", path: "/t", pos: 2, str: "1" }], author)]);
  // The first was committed under the old name, and is somebody else's now.
  expect(device.changes).toMatchObject([{ seq: 1, base: 1, ops: [splice(2, 0, "2")] }]);
  expect(device.shown?.t).toBe("xa12b");
});

/** Three devices, a server, and a network that holds what it likes for as long as it likes. */
class Net {
  readonly server = new TextServer();
  readonly devices: Device[] = [];
  readonly down: Commit[][] = [];
  readonly up: Change[][] = [];
  inserted = "";
  removed = "";
  #made = 0;

  async start(count: number): Promise<this> {
    for (let at = 0; at < count; at++) {
      const device = await new Device().join({ t: "" });
      this.devices.push(device);
      this.down.push([]);
      this.up.push([]);
      this.server.seat(device.core.clientId);
    }
    return this;
  }

  /** Each character is another one; every second lies beyond the BMP. */
  fresh(count: number): string {
    const made = Array.from({ length: count }, () => {
      const n = this.#made++;
      return String.fromCodePoint(n % 2 ? 0x20000 + n : 0x4e00 + n);
    }).join("");
    this.inserted += made;
    return made;
  }

  device(at: number): Device {
    return this.devices[at % this.devices.length] as Device;
  }

  text(at: number): string {
    return String(this.device(at).shown?.t);
  }

  edit(at: number, where: number, remove: number, insert: number): Operation {
    const text = [...this.text(at)];
    const index = where % (text.length + 1);
    const gone = text.slice(index, index + remove);
    this.removed += gone.join("");
    return splice(index, gone.length, this.fresh(insert));
  }

  /** What a device sent so far is on its way. */
  collect(at: number): void {
    const device = this.device(at);
    this.up[at]?.push(...device.changes);
    device.sent = [];
  }

  /** The server decides up to `count` of a device's changes. */
  decide(at: number, count: number): void {
    this.collect(at);
    for (const change of this.up[at]?.splice(0, count) ?? []) {
      const made = this.server.decide(this.device(at).core.clientId, change);
      if (made)
        this.devices.forEach((one, to) => void (one.connected && this.down[to]?.push(made)));
    }
  }

  /** A device hears up to `count` commits. An own change of splices ends as it was shown. */
  async deliver(at: number, count: number): Promise<void> {
    const device = this.device(at);
    for (const one of this.down[at]?.splice(0, count) ?? []) {
      const own = one.by.client_id === device.core.clientId;
      const [first] = device.core.replica.pending;
      const before = device.shown;
      await device.frame(one);
      if (own && first?.change.ops.every(({ op }) => op === "splice")) {
        expect(device.shown).toEqual(before);
      }
    }
  }

  async cut(at: number): Promise<void> {
    this.down[at] = [];
    this.up[at] = [];
    if (this.device(at).connected) await this.device(at).close(1006);
    this.device(at).sent = [];
  }

  async join(at: number): Promise<void> {
    const device = this.device(at);
    if (device.connected) return;
    await device.reopen();
    const { seq, at: seqAt } = this.server.seat(device.core.clientId);
    const version = device.core.replica.confirmed?.version ?? 0;
    await device.resumed(this.server.commits.slice(version), { seq, seq_at: seqAt });
  }

  async settle(): Promise<void> {
    for (let at = 0; at < this.devices.length; at++) await this.join(at);
    for (let at = 0; at < this.devices.length; at++) this.decide(at, Number.POSITIVE_INFINITY);
    for (let at = 0; at < this.devices.length; at++) {
      await this.deliver(at, Number.POSITIVE_INFINITY);
    }
    for (const { core, shown } of this.devices) {
      expect(core.replica.pending).toEqual([]);
      expect(core.replica.confirmed?.version).toBe(this.server.commits.length);
      expect(shown).toEqual({ t: this.server.text });
    }
  }
}

const who = fc.nat(2);
const steps = (whole: boolean) =>
  fc.array(
    fc.oneof(
      {
        weight: 8,
        arbitrary: fc.record({
          act: fc.constant("type" as const),
          who,
          where: fc.nat(40),
          remove: fc.oneof(fc.constant(0), fc.nat(4)),
          insert: fc.nat(3),
        }),
      },
      {
        weight: 5,
        arbitrary: fc.record({
          act: fc.constantFrom("decide" as const, "deliver" as const),
          who,
          count: fc.integer({ min: 1, max: 4 }),
        }),
      },
      {
        weight: 2,
        arbitrary: fc.record({ act: fc.constantFrom("cut" as const, "join" as const), who }),
      },
      {
        weight: whole ? 3 : 0,
        arbitrary: fc.record({
          act: fc.constant("write" as const),
          who,
          late: fc.integer({ min: -50, max: 50 }),
          above: fc.boolean(),
          keep: fc.boolean(),
        }),
      },
    ),
    { minLength: 5, maxLength: 60 },
  );

async function play(whole: boolean, run: (net: Net) => void): Promise<void> {
  await fc.assert(
    fc.asyncProperty(steps(whole), async (story) => {
      const net = await new Net().start(3);
      for (const step of story) {
        const at = step.who;
        const device = net.device(at);
        device.now += 10;
        if (step.act === "type") {
          await device.stored(net.edit(at, step.where, step.remove, step.insert));
        }
        if (step.act === "write") {
          const value = (step.keep ? net.text(at) : "") + net.fresh(2);
          device.now += step.late;
          await device.stored(
            step.above
              ? { op: "set", path: "", value: { t: value } }
              : { op: "set", path: "/t", value },
          );
        }
        if (step.act === "decide") net.decide(at, step.count);
        if (step.act === "deliver") await net.deliver(at, step.count);
        if (step.act === "cut") await net.cut(at);
        if (step.act === "join") await net.join(at);
      }
      await net.settle();
      run(net);
    }),
    { numRuns: Number(process.env.TEXT_RUNS ?? 300) },
  );
}

describe("three clients, long offline spans, positions beyond the BMP", () => {
  test("TX3, TX4: whatever arrives when: one text, with every character that nobody removed, once", async () => {
    await play(false, ({ server, inserted, removed }) => {
      const kept = [...inserted].filter((one) => !removed.includes(one));
      expect([...server.text].sort()).toEqual(kept.sort());
      expect(points(server.text)).toBe(kept.length);
    });
  }, 60_000);

  test("TX5, TX6: with whole writes among them, too, a splice ends where it was shown", async () => {
    await play(true, () => {});
  }, 60_000);
});
