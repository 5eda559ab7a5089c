/**
 * What the client takes from where it runs. Nothing is touched on import, and everything can be
 * handed in: a test, a worker or a server-side renderer brings its own.
 */

import { ReattachError } from "./core/errors.js";

export interface SocketLike {
  binaryType?: string;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

export interface ChannelLike {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

export interface Environment {
  /** Milliseconds since 1970. */
  now(): number;
  /** In [0, 1). */
  random(): number;
  /** Fills the bytes with cryptographic randomness. */
  fill(bytes: Uint8Array<ArrayBuffer>): Uint8Array;
  setTimer(callback: () => void, ms: number): unknown;
  clearTimer(timer: unknown): void;
  fetch: typeof fetch;
  WebSocket: (new (url: string, protocols: string[]) => SocketLike) | undefined;
  indexedDB: IDBFactory | undefined;
  /** Only in a secure context. */
  locks: Pick<LockManager, "request"> | undefined;
  channel: ((name: string) => ChannelLike) | undefined;
  /** Where the page came from; undefined outside of a page. */
  origin: string | undefined;
  /** The page's whole address; undefined outside of a page. */
  page: string | undefined;
  online(): boolean;
  /** Calls back when the network comes or goes; answers how to stop that. */
  onNetwork(callback: (online: boolean) => void): () => void;
  /** Whether somebody may be looking; true outside of a page. */
  visible(): boolean;
  /**
   * Calls back when the page is shown or hidden (`visible`, `hidden`), comes or goes, also into and out
   * of the back/forward cache (`show`, `hide`), or was frozen until now (`resume`).
   */
  onPage(callback: (moment: PageMoment) => void): () => void;
  /** Has the browser ask, or not, before it lets this page go. */
  guard(on: boolean): void;
  /** Asks the browser not to clear what is stored; undefined where it cannot be asked. */
  persist: (() => Promise<boolean>) | undefined;
}

/**
 * Where the server is, without a slash at the end. A relative `url` is one of the page's. Throws a
 * `ReattachError` (`bad_url`) where there is neither, and a `TypeError` for what is no url.
 */
export function baseOf({ origin, page }: Environment, url = origin): string {
  if (url === undefined) {
    throw new ReattachError("bad_url", 'expected a url: there is no page here, pass "url"');
  }
  return new URL(url, page).href.replace(/\/+$/, "");
}

export function browserEnvironment(): Environment {
  const { navigator, location, BroadcastChannel, WebSocket } = globalThis as Partial<
    typeof globalThis
  >;
  const { document } = globalThis as { document?: Document };
  const storage = navigator?.storage as StorageManager | undefined;
  // Asking costs: with it registered, some browsers do not keep a page for going back to it.
  const ask = (event: Event) => event.preventDefault();
  return {
    now: () => Date.now(),
    random: () => Math.random(),
    fill: (bytes) => crypto.getRandomValues(bytes),
    setTimer: (callback, ms) => setTimeout(callback, ms),
    clearTimer: (timer) => clearTimeout(timer as number),
    fetch: (...request) => fetch(...request),
    WebSocket,
    indexedDB: globalThis.indexedDB as IDBFactory | undefined,
    locks: navigator?.locks as LockManager | undefined,
    channel: BroadcastChannel && ((name) => new BroadcastChannel(name)),
    origin: location?.origin === "null" ? undefined : location?.origin,
    page: location?.href,
    online: () => navigator?.onLine !== false,
    onNetwork: (callback) =>
      on(globalThis, { online: () => callback(true), offline: () => callback(false) }),
    visible: () => document?.visibilityState !== "hidden",
    onPage(callback) {
      const stops = [
        on(globalThis, { pageshow: () => callback("show"), pagehide: () => callback("hide") }),
        on(document, {
          visibilitychange: () => callback(document?.hidden ? "hidden" : "visible"),
          freeze: () => callback("freeze"),
          resume: () => callback("resume"),
        }),
      ];
      return () => {
        for (const stop of stops) stop();
      };
    },
    guard: (asks) =>
      globalThis[asks ? "addEventListener" : "removeEventListener"]?.("beforeunload", ask),
    persist: storage?.persist && (() => storage.persist()),
  };
}

/** Listens to a target's events, where there are any; answers how to stop that. */
function on(
  target: Partial<EventTarget> | undefined,
  listeners: Readonly<Record<string, () => void>>,
): () => void {
  const stop = new AbortController();
  for (const type in listeners) {
    const listener = listeners[type];
    if (listener) target?.addEventListener?.(type, listener, { signal: stop.signal });
  }
  return () => stop.abort();
}

/** What befalls a page (Page Lifecycle). */
export type PageMoment = "visible" | "hidden" | "show" | "hide" | "freeze" | "resume";

/** A UUIDv7 (RFC 9562): ordered by time, from `getRandomValues`, which every context has. */
export function uuid(env: Pick<Environment, "now" | "fill">): string {
  const bytes = env.fill(new Uint8Array(16));
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const time = Math.floor(env.now()).toString(16).padStart(12, "0");
  const variant = "89ab"[(bytes[8] ?? 0) & 3];
  return [
    time.slice(0, 8),
    time.slice(8),
    `7${hex.slice(13, 16)}`,
    `${variant}${hex.slice(17, 20)}`,
    hex.slice(20),
  ].join("-");
}
