/**
 * A core with a simulated line and a store: what it sends is kept, what the server says is fed by
 * the test, frame by frame; a clock that stands still; ids and random numbers that are known.
 */

import type { Effect, Input, SessionEvent, TimerName } from "../../src/core/effects";
import type { JsonObject } from "../../src/core/json";
import { type CoreOptions, SessionCore } from "../../src/core/session";
import type {
  Change,
  ClientFrame,
  Commit,
  Operation,
  ServerFrame,
  Welcome,
} from "../../src/core/wire";
import { memoryStore } from "../../src/kv/memory";
import type { Store } from "../../src/kv/store";
import { read, transact } from "../../src/outbox";
import { by, commit, welcome } from "./frames";

let made = 0;

export interface Decided {
  readonly ref: string;
  readonly code: string | undefined;
}

export class Device {
  readonly core: SessionCore;
  readonly name = `d${++made}`;
  now = 1_000_000;
  random = 0.5;
  /** The store's own answer, for a while: a message that it fails with. */
  failing: string | null = null;
  connected = false;
  connects = 0;
  sent: ClientFrame[] = [];
  events: SessionEvent[] = [];
  kept: [ref: string, durable: boolean][] = [];
  decided: Decided[] = [];
  told = 0;
  pokes: boolean[] = [];
  asked: { clientId: string; from: number } | null = null;
  readonly timers = new Map<TimerName, number>();
  #ids = 0;
  #refs = 0;
  #storing: Promise<void> | null = null;
  #again = false;

  constructor(
    public store: Store = durableMemory(),
    options: Partial<CoreOptions> = {},
  ) {
    this.core = new SessionCore({
      newId: () => `${this.name}-id${++this.#ids}`,
      random: () => this.random,
      ...options,
    });
  }

  /** Reads the store, and leads. */
  async start(lead = true): Promise<this> {
    const found = await this.store.transaction("readonly", (tx) => read(tx, "", null));
    const { durable } = this.store;
    this.feed({ type: "loaded", found, deviceId: this.name, durable });
    this.feed({ type: "lead", leading: lead, exclusive: true });
    await this.settle();
    return this;
  }

  /** Connects, and is welcomed with a state. */
  async join(state: JsonObject = {}, given: Partial<Welcome> = {}): Promise<this> {
    await this.start();
    this.open();
    await this.welcome(state, given);
    return this;
  }

  open(): void {
    if (!this.connected) throw new Error("expected a connection to be wanted");
    this.feed({ type: "opened" });
  }

  /** Lets the clock run until the next attempt, and lets that one succeed. */
  async reopen(): Promise<void> {
    await this.advance(Math.max(0, (this.timers.get("connect") ?? this.now) - this.now));
    this.open();
  }

  async welcome(state: JsonObject, given: Partial<Welcome> = {}): Promise<void> {
    await this.frame({ type: "initial_state", ...welcome(given), state });
  }

  async resumed(commits: Commit[], given: Partial<Welcome> = {}): Promise<void> {
    const version = commits.at(-1)?.version ?? this.core.replica.confirmed?.version ?? 0;
    await this.frame({ type: "resumed", ...welcome({ version, ...given }), commits });
  }

  async frame(frame: ServerFrame): Promise<void> {
    this.feed({ type: "frame", frame: structuredClone(frame) });
    await this.settle();
  }

  /** Acknowledges the oldest change in flight, as a commit with this patch. */
  async acknowledge(version: number, patch: Commit["patch"], seq: number): Promise<void> {
    await this.frame(commit(version, patch, by(this.core.clientId, seq)));
  }

  change(...ops: Operation[]): string {
    const ref = `${this.name}-r${++this.#refs}`;
    this.run(this.core.change(ops, ref, this.now));
    return ref;
  }

  async stored(...ops: Operation[]): Promise<string> {
    const ref = this.change(...ops);
    await this.settle();
    return ref;
  }

  feed(input: Input): void {
    this.run(this.core.step(input, this.now));
  }

  async close(code: number): Promise<void> {
    this.connected = false;
    this.feed({ type: "closed", code });
    await this.settle();
  }

  /** Lets the clock run; timers go off in their order. */
  async advance(ms: number): Promise<void> {
    const until = this.now + ms;
    for (;;) {
      const next = [...this.timers].filter(([, at]) => at <= until).sort((a, b) => a[1] - b[1])[0];
      if (!next) break;
      this.now = Math.max(this.now, next[1]);
      this.timers.delete(next[0]);
      this.feed({ type: "timer", name: next[0] });
      await this.settle();
    }
    this.now = until;
  }

  /** Waits until every transaction has ended. */
  async settle(): Promise<void> {
    while (this.#storing) await this.#storing;
  }

  get changes(): Change[] {
    return this.sent.filter((frame) => frame.type === "change");
  }

  get hello(): ClientFrame & { type: "hello" } {
    const last = this.sent.filter((frame) => frame.type === "hello").at(-1);
    if (!last) throw new Error("expected a hello");
    return last;
  }

  get shown(): JsonObject | undefined {
    return this.core.replica.shown;
  }

  get confirmed(): JsonObject | undefined {
    return this.core.replica.confirmed?.state;
  }

  run(effects: Effect[]): void {
    for (const effect of effects) {
      switch (effect.type) {
        case "connect":
          this.connected = true;
          this.connects++;
          break;
        case "disconnect":
          this.connected = false;
          break;
        case "send":
          this.sent.push(structuredClone(effect.frame));
          break;
        case "timer":
          if (effect.ms === null) this.timers.delete(effect.name);
          else this.timers.set(effect.name, this.now + effect.ms);
          break;
        case "event":
          this.events.push(effect.event);
          break;
        case "kept":
          this.kept.push([effect.ref, effect.durable]);
          break;
        case "decided":
          this.decided.push({ ref: effect.ref, code: effect.error?.code });
          break;
        case "history":
          this.asked = { clientId: effect.clientId, from: effect.from };
          break;
        case "poke":
          this.pokes.push(effect.alone ?? false);
          break;
        case "tell":
          this.told++;
          break;
        case "detach":
          this.store = memoryStore();
          this.failing = null;
          break;
        case "store":
          this.#persist();
          break;
      }
    }
  }

  #persist(): void {
    this.#again = true;
    this.#storing ??= (async () => {
      await null;
      while (this.#again) {
        this.#again = false;
        const { failing } = this;
        const store: Store = failing === null ? this.store : brokenStore(this.store, failing);
        let outcome: Input = { type: "stored" };
        try {
          await transact(store, "", this.core, () => this.now);
        } catch (reason) {
          outcome = { type: "store_failed", message: (reason as Error).message };
        }
        this.feed(outcome);
      }
      this.#storing = null;
    })();
  }
}

/** A memory that says it were a disk. */
export function durableMemory(): Store {
  return { ...memoryStore(), durable: true };
}

/** A store whose transactions do all their work, and then are not committed. */
function brokenStore(store: Store, message: string): Store {
  return {
    ...store,
    transaction: (mode, body) =>
      store.transaction(mode, async (tx) => {
        await body(tx);
        throw new Error(message);
      }),
  };
}

/** Every row of a store. */
export function rowsOf(store: Store): Promise<unknown[]> {
  return store.transaction("readonly", (tx) => tx.range("", "\uffff"));
}
