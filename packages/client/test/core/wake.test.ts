import { describe, expect, test } from "vitest";
import type { Operation } from "../../src/core/wire";
import { Device, durableMemory } from "../support/device";

const set = (path: string, value: number): Operation => ({ op: "set", path, value });
const beats = (device: Device) => device.sent.filter(({ type }) => type === "heartbeat").length;
const answer = (device: Device) =>
  device.frame({ type: "heartbeat", t: device.now, server_time: 0 });
const shown = { type: "page", visible: true, woken: true } as const;

describe("a page that wakes up", () => {
  test.each([
    ["is shown again", shown],
    ["comes online", { type: "network", online: true } as const],
    ["goes offline", { type: "network", online: false } as const],
  ])("%s: a line that is dead is known within a second, and made anew", async (_, input) => {
    const device = await new Device().join();
    device.feed(input);
    expect(beats(device)).toBe(1);
    await device.advance(890);
    expect(device.core.status.connection).toBe("online");
    await device.advance(110);
    expect(device.core.status.connection).toBe(
      input.type === "network" && !input.online ? "offline" : "reconnecting",
    );
    await device.advance(500);
    expect(device.connects).toBe(2);
  });

  test("a line that answers stands, and the patience is that of every day again", async () => {
    const device = await new Device().join();
    device.feed(shown);
    await device.advance(300);
    await answer(device);
    await device.advance(14_000);
    expect(device.connects).toBe(1);
    expect(beats(device)).toBeGreaterThan(1);
    await device.advance(1_000);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("a line that is known to be slow is given the time that it takes", async () => {
    const device = await new Device().join();
    await device.advance(5_000);
    await device.advance(800);
    await answer(device);
    device.feed(shown);
    await device.advance(3_000);
    expect(device.core.status.connection).toBe("online");
    await device.advance(300);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("an everyday question that waits for its answer is not waited for longer", async () => {
    const device = await new Device().join();
    await device.advance(5_000);
    expect(beats(device)).toBe(1);
    device.feed(shown);
    await device.advance(1_000);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("many moments at once ask once, and none of them puts the end off", async () => {
    const device = await new Device().join();
    for (let i = 0; i < 9; i++) {
      device.feed(shown);
      await device.advance(100);
    }
    expect(beats(device)).toBe(1);
    await device.advance(50);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("the clock jumps: the machine slept, and the line is asked at once", async () => {
    const device = await new Device().join();
    device.feed({ type: "page", visible: true, woken: false });
    await device.advance(2_000);
    expect(beats(device)).toBe(0);
    // Its timers go on where they were when it fell asleep.
    device.now += 60_000;
    device.feed({ type: "timer", name: "watch" });
    expect(beats(device)).toBe(1);
    await device.advance(1_000);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("a hidden page does not look at the clock, an ended one neither", async () => {
    const device = await new Device().join();
    device.feed({ type: "page", visible: true, woken: false });
    device.feed({ type: "page", visible: false, woken: false });
    expect(device.timers.has("watch")).toBe(false);
    device.feed({ type: "page", visible: true, woken: false });
    device.feed({ type: "stop" });
    expect(device.timers.size).toBe(0);
  });

  test("who waits for the next attempt tries at once, but not without a network", async () => {
    const device = await new Device().join();
    device.feed({ type: "network", online: false });
    await device.close(1006);
    device.feed(shown);
    expect(device.connects).toBe(1);
    device.feed({ type: "network", online: true });
    expect(device.connects).toBe(2);
  });

  test("an attempt that hung before the machine slept is made anew, a fresh one is not", async () => {
    const device = await new Device().start();
    device.feed({ type: "dialing" });
    device.feed(shown);
    expect(device.connects).toBe(1);
    await device.advance(3_000);
    device.feed(shown);
    expect(device.connects).toBe(2);
  });

  test("an application that is still asking its user for a token is left in peace", async () => {
    const device = await new Device().start();
    await device.advance(60_000);
    device.feed(shown);
    expect(device.connects).toBe(1);
  });
});

describe("a line that is silently dead", () => {
  test("is known within the heartbeat's timeout", async () => {
    const device = await new Device().join();
    await device.advance(14_999);
    expect(device.core.status.connection).toBe("online");
    await device.advance(1);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("the next question is set by the answer: timers that timers set are held back", async () => {
    const device = await new Device().join();
    await device.advance(5_000);
    await device.advance(40);
    device.timers.delete("beat");
    await answer(device);
    expect(device.timers.get("beat")).toBe(device.now + 5_000);
  });
});

describe("attempts", () => {
  test("one that failed is not forgotten when the page wakes up: what follows is a reconnection", async () => {
    const device = await new Device().start();
    await device.close(1006);
    expect(device.core.status.connection).toBe("reconnecting");
    device.feed({ type: "network", online: true });
    expect(device.connects).toBe(2);
    expect(device.core.status.connection).toBe("reconnecting");
  });

  test("ten that fail are told, once, and it goes on more slowly", async () => {
    const device = await new Device().join();
    device.random = 0.999;
    const waits: number[] = [];
    for (let i = 0; i < 14; i++) {
      await device.close(1006);
      waits.push((device.timers.get("connect") ?? 0) - device.now);
      await device.advance(waits.at(-1) ?? 0);
      expect(device.connects).toBe(i + 2);
    }
    const told = device.events.filter(({ type }) => type === "maxReconnectAttemptsReached");
    expect(told).toEqual([{ type: "maxReconnectAttemptsReached", detail: { attempts: 10 } }]);
    expect(waits[0]).toBeCloseTo(499.5);
    expect(waits[9]).toBeCloseTo(29_970);
    expect(waits[13]).toBeCloseTo(59_940);
    device.open();
    await device.resumed([]);
    expect(device.core.status.connection).toBe("online");
  });
});

describe("a last breath", () => {
  const all = () => true;

  test("is what the server has not decided, once", async () => {
    const device = await new Device().join();
    await device.stored(set("/a", 1));
    await device.stored(set("/a", 2));
    expect(device.core.lastBreath(all, device.now)).toEqual({
      client_id: device.core.clientId,
      device: { id: device.name },
      t: device.now,
      changes: device.core.replica.pending.map(({ change }) => change),
    });
    expect(device.core.lastBreath(all, device.now)).toBeNull();
    await device.stored(set("/a", 3));
    expect(device.core.lastBreath(all, device.now)?.changes.map(({ seq }) => seq)).toEqual([
      1, 2, 3,
    ]);
  });

  test("ends before what has no room, is not stored, or belongs to nobody yet", async () => {
    const device = await new Device(durableMemory(), { create: { state: {} } }).start();
    await device.close(1006);
    await device.stored(set("/a", 1));
    // Whose it is has no server heard.
    expect(device.core.lastBreath(all, device.now)).toBeNull();
    await device.reopen();
    await device.welcome({});
    await device.stored(set("/a", 2));
    device.change(set("/a", 3));
    let room = 1;
    const seqs = (fits: () => boolean) =>
      device.core.lastBreath(fits, device.now)?.changes.map(({ seq }) => seq);
    expect(seqs(() => room-- > 0)).toEqual([1]);
    expect(seqs(all)).toEqual([1, 2]);
  });

  test("that is answered over the line, which had not sent it yet, is no stranger's", async () => {
    const device = await new Device().join();
    await device.stored(set("/a", 1));
    await device.frame({ type: "error", code: "busy", message: "", retry_after_ms: 60_000 });
    await device.stored(set("/a", 2));
    expect(device.changes.map(({ seq }) => seq)).toEqual([1]);
    device.core.lastBreath(all, device.now);
    await device.acknowledge(1, [{ op: "add", path: "/a", value: 1 }], 1);
    await device.acknowledge(2, [{ op: "replace", path: "/a", value: 2 }], 2);
    expect(device.core.status).toMatchObject({ connection: "online", saved: true });
    expect(device.asked).toBeNull();
  });

  test("is the leading tab's", async () => {
    const device = await new Device().join();
    await device.stored(set("/a", 1));
    device.feed({ type: "lead", leading: false, exclusive: true });
    expect(device.core.lastBreath(all, device.now)).toBeNull();
  });
});

test("after a reload, what this device had is put back, and said so", async () => {
  const store = durableMemory();
  const before = await new Device(store).join({ a: 0 });
  expect(before.events.map(({ type }) => type)).not.toContain("stateRestored");
  await before.stored(set("/a", 1));
  const after = await new Device(store).start();
  expect(after.events).toEqual([{ type: "stateRestored", detail: { version: 0, pending: 1 } }]);
});

test("another's rows of a newer release: this page goes on in memory, and sends what it has", async () => {
  const device = await new Device().join({ a: 0 });
  device.failing = "newer";
  device.change(set("/a", 1));
  device.failing = null;
  device.feed({ type: "store_failed", message: "newer", outdated: true });
  await device.settle();
  expect(device.events.at(-1)).toEqual({ type: "upgradeRequired", detail: { message: "newer" } });
  device.open();
  await device.resumed([]);
  expect(device.changes.at(-1)).toMatchObject({ ops: [set("/a", 1)] });
  expect(device.core.status).toMatchObject({ storage: "memory", savedOnDevice: false });
});
