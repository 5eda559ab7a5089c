import { beforeEach, describe, expect, test, vi } from "vitest";
import type { ChannelLike, Environment } from "../src/env";
import { joinTabs } from "../src/tabs";

/** A tab's surroundings: a clock that stands still, a channel and a lock that do what they are told. */
class Tab {
  now = 0;
  leads: boolean[] = [];
  heard: unknown[] = [];
  said: { type: string }[] = [];
  waits = false;
  timers: { at: number; callback: () => void }[] = [];
  requests: { options: LockOptions; grant: () => Promise<unknown>; fail: (e: Error) => void }[] =
    [];
  readonly channel: ChannelLike = {
    onmessage: null,
    postMessage: (message) => void this.said.push(message as { type: string }),
    close() {},
  };
  readonly locks = {
    request: (_: string, options: LockOptions, body: () => Promise<void>) =>
      new Promise<void>((resolve, reject) => {
        options.signal?.addEventListener("abort", () => reject(options.signal?.reason));
        const grant = () => Promise.resolve(body()).then(resolve);
        this.requests.push({ options, grant, fail: reject });
      }),
  } as unknown as Pick<LockManager, "request">;
  readonly env = {
    now: () => this.now,
    setTimer: (callback: () => void, ms: number) => {
      const timer = { at: this.now + ms, callback };
      this.timers.push(timer);
      return timer;
    },
    clearTimer: (timer: { at: number; callback: () => void }) => {
      this.timers = this.timers.filter((one) => one !== timer);
    },
    channel: () => this.channel,
  } as unknown as Environment;
  readonly tabs = joinTabs(this.env, this.locks, "name", {
    lead: (leading) => void this.leads.push(leading),
    message: (message) => void this.heard.push(message),
    waits: () => this.waits,
  });

  hear(message: object): void {
    this.channel.onmessage?.({ data: { release: 1, ...message } } as MessageEvent);
  }

  async advance(ms: number): Promise<void> {
    this.now += ms;
    const due = this.timers.filter(({ at }) => at <= this.now);
    this.timers = this.timers.filter((timer) => !due.includes(timer));
    for (const { callback } of due) callback();
    await settle();
  }

  get steals(): number {
    return this.requests.filter(({ options }) => options.steal).length;
  }
}

const settle = () => new Promise((resolve) => setImmediate(resolve));
const line = { type: "line", line: {} };

let tab: Tab;

beforeEach(async () => {
  tab = new Tab();
  await settle();
});

describe("who follows", () => {
  test("takes the lock from a leader that gives no sign of life within 700 ms", async () => {
    tab.tabs.urge();
    tab.tabs.urge();
    expect(tab.said.map(({ type }) => type)).toEqual(["hi", "there?"]);
    await tab.advance(699);
    expect(tab.steals).toBe(0);
    await tab.advance(1);
    expect(tab.steals).toBe(1);
    void tab.requests.at(-1)?.grant();
    expect(tab.leads).toEqual([true]);
  });

  test.each([{ type: "here" }, line])("leaves it to one that answers with %j", async (sign) => {
    tab.tabs.urge();
    await tab.advance(600);
    tab.hear(sign);
    await tab.advance(5_000);
    expect(tab.steals).toBe(0);
  });

  test("asks again as long as somebody waits: the leader may freeze after its answer", async () => {
    tab.waits = true;
    tab.tabs.urge();
    tab.hear({ type: "here" });
    await tab.advance(1_000);
    expect(tab.said.filter(({ type }) => type === "there?")).toHaveLength(2);
    await tab.advance(700);
    expect(tab.steals).toBe(1);
  });

  test("having stood still itself, it asks again before it takes anything", async () => {
    tab.tabs.urge();
    await tab.advance(30_000);
    expect(tab.steals).toBe(0);
    expect(tab.said.filter(({ type }) => type === "there?")).toHaveLength(2);
    await tab.advance(700);
    expect(tab.steals).toBe(1);
  });

  test("that has left takes nothing", async () => {
    tab.tabs.urge();
    tab.tabs.stop();
    await tab.advance(700);
    await settle();
    expect(tab.requests).toHaveLength(1);
  });
});

describe("who leads", () => {
  beforeEach(() => {
    void tab.requests[0]?.grant();
  });

  test("says that it is there, to tabs of any release", () => {
    tab.hear({ type: "there?", release: 7 });
    expect(tab.said.at(-1)).toMatchObject({ type: "here" });
    tab.tabs.urge();
    expect(tab.said.at(-1)).toMatchObject({ type: "here" });
  });

  test("steps back at once when the lock is taken, and stands in line again", async () => {
    tab.requests[0]?.fail(new DOMException("stolen", "AbortError"));
    await settle();
    // It asks the tab that leads now what the line does.
    expect(tab.said.map(({ type }) => type)).toEqual(["hi", "hi"]);
    expect(tab.leads).toEqual([true, false]);
    tab.hear({ type: "there?" });
    expect(tab.said).toHaveLength(2);
    await tab.advance(1_000);
    expect(tab.requests).toHaveLength(2);
    expect(tab.steals).toBe(0);
  });
});

test("what tabs of another release say is not for this one", () => {
  tab.hear({ type: "poke", alone: true, release: 2 });
  tab.hear({ type: "line", line: { connection: "online" }, release: 2 });
  expect(tab.heard).toEqual([]);
  tab.hear(line);
  expect(tab.heard).toEqual([{ ...line, release: 1 }]);
  tab.tabs.post({ type: "poke", alone: false });
  expect(tab.said.at(-1)).toEqual({ type: "poke", alone: false, release: 1 });
});

test("without a channel nobody can be asked, and nothing is taken", async () => {
  const steal = vi.fn(() => new Promise<void>(() => {}));
  const env = { ...tab.env, channel: undefined };
  const locks = { request: steal } as unknown as Pick<LockManager, "request">;
  const events = { lead() {}, message() {}, waits: () => true };
  joinTabs(env, locks, "name", events).urge();
  await tab.advance(5_000);
  expect(steal).toHaveBeenCalledTimes(1);
});
