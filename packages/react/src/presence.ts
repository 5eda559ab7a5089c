import type { Session } from "reattach";

/** What another device says of itself, while it is online. */
export interface Present<T> {
  readonly deviceId: string;
  readonly data: T;
}

interface Said {
  readonly present: Present<unknown>;
  /** The list of devices has had it online since: when it has not any more, this is over. */
  seen: boolean;
}

const NOBODY: readonly Present<never>[] = [];

// What a session's state is, each hook is told by who calls it.
// biome-ignore lint/suspicious/noExplicitAny: neither a context nor what is in it can be generic
export type AnySession = Session<any>;

/**
 * What a session's devices last said of themselves. It listens as long as the session's provider is
 * there, so that a component that comes later knows what was said before.
 */
export class Presence {
  readonly #session: AnySession;
  readonly #said = new Map<string, Said>();
  readonly #listeners = new Set<() => void>();
  #others: readonly Present<unknown>[] = NOBODY;
  #mine: { readonly data: unknown } | null = null;
  #online: ReadonlySet<string> = new Set();
  #connected = false;

  constructor(session: AnySession) {
    this.#session = session;
  }

  /** Begins to listen; answers what ends it. */
  start(): () => void {
    const stop = new AbortController();
    const heard = ({ detail }: CustomEvent<{ device_id: string; data: unknown }>) => {
      const { device_id: deviceId, data } = detail;
      this.#said.delete(deviceId);
      this.#said.set(deviceId, { present: { deviceId, data }, seen: false });
      this.#look();
    };
    this.#session.addEventListener("presence", heard, { signal: stop.signal });
    const unsubscribe = this.#session.subscribe(() => this.#look());
    this.#look();
    return () => {
      stop.abort();
      unsubscribe();
    };
  }

  /** Calls back when `others` has become another list. */
  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** Of those that are online; who spoke last comes last. */
  readonly others = (): readonly Present<unknown>[] => this.#others;

  readonly tell = (data: unknown): void => {
    this.#mine = { data };
    this.#session.presence(data);
  };

  #look(): void {
    const { devices, status } = this.#session;
    const online = new Set(devices.filter((one) => one.online).map(({ id }) => id));
    const connected = status.connection === "online";
    // Who comes has not heard this device, and who saw it go has forgotten it.
    const unheard = [...online].some((id) => !this.#online.has(id)) || !this.#connected;
    this.#online = online;
    this.#connected = connected;
    if (this.#mine && connected && unheard) this.#session.presence(this.#mine.data);

    for (const [id, said] of this.#said) {
      if (online.has(id)) said.seen = true;
      else if (said.seen) this.#said.delete(id);
    }
    const others = [...this.#said.values()].filter(({ seen }) => seen).map((one) => one.present);
    const same = (one: Present<unknown>, at: number) => one === this.#others[at];
    if (others.length === this.#others.length && others.every(same)) return;
    this.#others = others;
    for (const listener of [...this.#listeners]) listener();
  }
}
