/** Pages of browser profiles: what tabs share, and what dies with one. */

import { connect } from "../../src";
import type { ConnectOptions } from "../../src/api";
import type { ServerFrame } from "../../src/core/wire";
import {
  browserEnvironment,
  type ChannelLike,
  type Environment,
  type PageMoment,
} from "../../src/env";
import { idbStore } from "../../src/kv/idb";
import type { Session } from "../../src/session";
import type { FakeServer } from "./server";

let profiles = 0;

/** One browser profile: its disk, its locks, its channels. */
export class Profile {
  readonly name = `profile-${++profiles}`;
  readonly channels = new Map<string, Set<ChannelLike>>();
  readonly #held = new Map<string, Promise<void>>();
  /** Takes a lock from who has it. */
  readonly #thefts = new Map<string, () => void>();

  constructor(readonly server: FakeServer) {}

  open<State extends object>(
    options: Partial<ConnectOptions> & { env?: Partial<Environment> } = {},
  ): Page<State> {
    return new Page<State>(this, options);
  }

  /** Its disk. */
  store(): NonNullable<ConnectOptions["store"]> {
    return lazily(() => idbStore(this.name));
  }

  /** Web Locks, as far as the client uses them. */
  locks(page: { dies: Promise<void>; gate(body: () => void): void; dead: boolean }) {
    const request = async (
      name: string,
      { signal, steal = false }: { signal?: AbortSignal; steal?: boolean },
      body: () => Promise<void> | undefined,
    ) => {
      const before = steal ? undefined : this.#held.get(name);
      let release = () => {};
      const mine = new Promise<void>((resolve) => {
        release = resolve;
      });
      if (steal) this.#thefts.get(name)?.();
      this.#held.set(
        name,
        Promise.all([before, mine]).then(() => {}),
      );
      const aborted = new Promise<void>((resolve) => {
        signal?.addEventListener("abort", () => resolve());
      });
      await Promise.race([before, aborted, page.dies]);
      try {
        if (signal?.aborted) throw signal.reason;
        const stolen = new Promise<void>((_, reject) => {
          this.#thefts.set(name, () => {
            release();
            page.gate(() => reject(new DOMException("stolen", "AbortError")));
          });
        });
        if (!page.dead) await Promise.race([body(), page.dies, stolen]);
      } finally {
        release();
      }
      // What is dead does not go on.
      if (page.dead) await new Promise<never>(() => {});
    };
    return { request } as unknown as NonNullable<Environment["locks"]>;
  }
}

export class Page<State extends object> {
  dead = false;
  readonly dies: Promise<void>;
  readonly session: Session<State>;
  readonly ready: Promise<void>;
  #die = () => {};
  readonly #sockets: { close(): void; onmessage: unknown; onclose: unknown; onopen: unknown }[] =
    [];
  readonly #network = new Set<(online: boolean) => void>();
  readonly #moments = new Set<(moment: PageMoment) => void>();
  /** What happens to it while it is frozen. */
  #late: (() => void)[] | null = null;
  online = true;
  visible = true;
  /** What the browser was told about asking before it lets the page go. */
  readonly guards: boolean[] = [];

  constructor(profile: Profile, { env, ...options }: Partial<ConnectOptions>) {
    this.dies = new Promise((resolve) => {
      this.#die = resolve;
    });
    const page = this;
    const real = browserEnvironment();
    const Socket = profile.server.socketClass();
    const gate = (body: () => void) => (this.#late ? void this.#late.push(body) : body());
    const mine = new Set<ChannelLike>();
    const locks = profile.locks({
      get dead() {
        return page.dead;
      },
      dies: this.dies,
      gate,
    });
    const environment: Partial<Environment> = {
      // A short clock for the waits between attempts.
      random: () => 0.02,
      setTimer: (callback, ms) => setTimeout(() => !page.dead && gate(callback), ms),
      fetch: profile.server.fetch,
      WebSocket: class extends Socket {
        constructor(url: string, protocols: string[]) {
          super(url, protocols);
          page.#sockets.push(this);
        }
        override tell(frame: ServerFrame): void {
          gate(() => super.tell(frame));
        }
        override end(code: number): void {
          this.close();
          gate(() => super.end(code));
        }
      },
      locks,
      channel: (name) => {
        const all = profile.channels.get(name) ?? new Set();
        profile.channels.set(name, all);
        const channel: ChannelLike = {
          onmessage: null,
          postMessage(message) {
            const data = structuredClone(message);
            for (const other of all) {
              if (other === channel) continue;
              setImmediate(() => other.onmessage?.({ data } as MessageEvent));
            }
          },
          close: () => all.delete(channel),
        };
        // What others post reaches it when it is awake.
        let heard: ChannelLike["onmessage"] = null;
        Object.defineProperty(channel, "onmessage", {
          get: () => heard && ((event: MessageEvent) => gate(() => heard?.(event))),
          set: (listener: ChannelLike["onmessage"]) => {
            heard = listener;
          },
        });
        all.add(channel);
        mine.add(channel);
        return channel;
      },
      online: () => this.online,
      onNetwork: (callback) => {
        this.#network.add(callback);
        return () => this.#network.delete(callback);
      },
      visible: () => this.visible,
      onPage: (callback) => {
        this.#moments.add(callback);
        return () => this.#moments.delete(callback);
      },
      guard: (on) => void this.guards.push(on),
      ...env,
    };
    void this.dies.then(() => {
      for (const channel of mine) {
        channel.onmessage = null;
        channel.close();
      }
    });
    this.session = connect<State>({
      url: "http://server.test/app",
      session: "s",
      ...options,
      env: { ...real, ...environment },
      store: options.store ?? profile.store(),
    });
    this.ready = this.session.ready;
  }

  /** The tab is gone from one moment to the next: nothing of it runs any more. */
  kill(): void {
    this.dead = true;
    for (const socket of this.#sockets) {
      socket.onmessage = socket.onclose = socket.onopen = null;
      socket.close();
    }
    this.#die();
  }

  /** Nothing of it runs, and what happens meanwhile happens to it when it wakes up. */
  freeze(): void {
    this.#late ??= [];
  }

  thaw(): void {
    const late = this.#late ?? [];
    this.#late = null;
    for (const body of late) body();
  }

  moment(moment: PageMoment): void {
    this.visible = moment !== "hidden" && moment !== "hide";
    for (const callback of this.#moments) callback(moment);
  }

  network(online: boolean): void {
    this.online = online;
    for (const callback of this.#network) callback(online);
  }
}

/** A store that is opened when it is first used. */
function lazily(open: () => ReturnType<typeof idbStore>): NonNullable<ConnectOptions["store"]> {
  let opened: ReturnType<typeof idbStore> | null = null;
  return {
    durable: true,
    async transaction(mode, body) {
      opened ??= open();
      return (await opened).transaction(mode, body);
    },
    close: () => void opened?.then((store) => store.close()),
  };
}

/** Waits for a condition, with a deadline; throws what the condition last said. */
export async function until(
  condition: () => unknown,
  what = condition.toString(),
  ms = 4_000,
): Promise<void> {
  const deadline = Date.now() + ms;
  for (;;) {
    try {
      if (condition()) return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
    if (Date.now() > deadline) throw new Error(`waited in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
