/** Pages of browser profiles: what tabs share, and what dies with one. */

import { connect } from "../../src";
import type { ConnectOptions } from "../../src/api";
import { browserEnvironment, type ChannelLike, type Environment } from "../../src/env";
import { idbStore } from "../../src/kv/idb";
import type { Session } from "../../src/session";
import type { FakeServer } from "./server";

let profiles = 0;

/** One browser profile: its disk, its locks, its channels. */
export class Profile {
  readonly name = `profile-${++profiles}`;
  readonly channels = new Map<string, Set<ChannelLike>>();
  readonly #held = new Map<string, Promise<void>>();

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
  locks(page: { dead: boolean; dies: Promise<void> }): Environment["locks"] {
    const request = async (
      name: string,
      { signal }: { signal: AbortSignal },
      body: () => Promise<void>,
    ) => {
      const before = this.#held.get(name) ?? Promise.resolve();
      let release = () => {};
      const mine = new Promise<void>((resolve) => {
        release = resolve;
      });
      this.#held.set(
        name,
        before.then(() => mine),
      );
      const aborted = new Promise<void>((resolve) => {
        signal.addEventListener("abort", () => resolve());
      });
      await Promise.race([before, aborted, page.dies]);
      try {
        if (signal.aborted) throw signal.reason;
        if (!page.dead) await Promise.race([body(), page.dies]);
      } finally {
        release();
      }
      // What is dead does not go on.
      if (page.dead) await new Promise<never>(() => {});
    };
    return { request } as unknown as Environment["locks"];
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
  online = true;

  constructor(profile: Profile, { env, ...options }: Partial<ConnectOptions>) {
    this.dies = new Promise((resolve) => {
      this.#die = resolve;
    });
    const page = this;
    const real = browserEnvironment();
    const Socket = profile.server.socketClass();
    const mine = new Set<ChannelLike>();
    const locks = profile.locks({
      get dead() {
        return page.dead;
      },
      dies: this.dies,
    });
    const environment: Partial<Environment> = {
      // A short clock for the waits between attempts.
      random: () => 0.02,
      setTimer: (callback, ms) => setTimeout(() => !page.dead && callback(), ms),
      fetch: profile.server.fetch,
      WebSocket: class extends Socket {
        constructor(url: string, protocols: string[]) {
          super(url, protocols);
          page.#sockets.push(this);
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
        all.add(channel);
        mine.add(channel);
        return channel;
      },
      online: () => this.online,
      onNetwork: (callback) => {
        this.#network.add(callback);
        return () => this.#network.delete(callback);
      },
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
