/** What an application hands in and gets back: options, changes, lists, events. */

import type { Json, JsonObject } from "./core/json.js";
import type { Rejected } from "./core/outbox.js";
import type { Status } from "./core/session.js";
import type {
  Checkpoint,
  Commit,
  Conflict as ConflictRecord,
  HelloDevice,
  Operation,
  Change as SentChange,
} from "./core/wire.js";
import type { Environment } from "./env.js";
import type { Store } from "./kv/store.js";

/** What is read of a state: frozen all the way down. Change it with `session.update`. */
export type DeepReadonly<T> = T extends readonly (infer Item)[]
  ? number extends T["length"]
    ? readonly DeepReadonly<Item>[]
    : { readonly [At in keyof T]: DeepReadonly<T[At]> }
  : T extends object
    ? { readonly [Key in keyof T]: DeepReadonly<T[Key]> }
    : T;

/**
 * A bearer token, or how to get a fresh one: called for each connection, also after a 4401. Where it
 * answers undefined, a cookie says who is there.
 */
export type Token = string | (() => string | undefined | Promise<string | undefined>);

/** A link that lets one other device in. */
export interface Handoff {
  readonly link: string;
  /** Until when it can be opened, in milliseconds since 1970. */
  readonly expiresAt: number;
}

export interface ConnectOptions {
  /**
   * Where the server is, with the prefix it is mounted under: whole, or relative to the page
   * (`/sessions`). The page's origin by default.
   */
  url?: string;
  /** The session's id: `[A-Za-z0-9._:~-]{1,128}`. */
  session: string;
  /**
   * The id of who is signed in, as the server knows it. Keeps what users of one browser profile have
   * on it apart: nobody sees or sends what another one typed, and it is there when they come back. A
   * token or a cookie of somebody else gets no line (`not_authenticated`). Left out, whatever is kept
   * without a user is taken: that of whoever uses the profile, where nobody signs in.
   */
  user?: string;
  token?: Token;
  /** How this device is shown to the session's other devices. */
  device?: { name?: string; info?: JsonObject };
  /**
   * Creates the session where it is not there. With a `state`, and no server to be reached, work
   * begins on that.
   */
  create?: { state?: object; schema?: string };
  /** The version of the session's schema that this application was written for. */
  schemaVersion?: number;
  /** Parts of the environment to replace: for tests, workers, old browsers. */
  env?: Partial<Environment>;
  /** Where to keep things, in place of IndexedDB. */
  store?: Store;
}

/** A change on its way. Ignoring it is fine: a refusal is also listed in `session.rejected`. */
export interface Change {
  /** Names the change on this device. */
  readonly ref: string;
  /**
   * Resolves with true when the change is on this device's disk, with false when this device
   * cannot keep it (`status.storage` is `"memory"`). Never rejects.
   */
  readonly stored: Promise<boolean>;
  /**
   * Resolves when the change is in the server's database; that can take until the network is back.
   * Rejects with a `ReattachError` whose `code` is the server's when it was refused for good, and with
   * `handed_over` where this tab's storage failed after the change was stored: other tabs send it then.
   */
  readonly acknowledged: Promise<void>;
}

/** A value that a merge did not keep, and how to have it back. */
export interface Conflict extends ConflictRecord {
  /** Settles it on all devices: `"kept"`, `"lost"`, or another `{ value }`. */
  resolve(keep: "kept" | "lost" | { value: Json }): Change;
}

/** A change that the server refused for good. It stays in this list until it is dealt with. */
export interface RejectedChange {
  readonly ref: string;
  /** The protocol's code, such as `forbidden`, `test_failed`, `schema_changed`. */
  readonly code: string;
  readonly message: string;
  /** The JSON Pointer of the operation that was the reason, where one was. */
  readonly path: string | undefined;
  readonly ops: readonly Operation[];
  /** When its user acted, in milliseconds since 1970. */
  readonly at: number;
  /** Makes the change anew, over the state of now. Throws `OpError` where it makes no sense there. */
  sendAgain(): Change;
  /** Makes another change in its place. Throws as `sendAgain` does. */
  edit(ops: readonly Operation[]): Change;
  /** Forgets it. */
  discard(): void;
}

/** What a device had that the server did not: made by `session.export()`, plain JSON. */
export interface Outbox {
  readonly session_id: string;
  readonly client_id: string;
  /** The device that the changes were made on. */
  readonly device: HelloDevice;
  /** What the server had not decided, as the protocol has changes (section 3), oldest first. */
  readonly changes: readonly SentChange[];
  /** What it had refused. For reading: `import` does not send it again. */
  readonly rejected: readonly Rejected[];
}

/** What became of an imported outbox. */
export interface Imported {
  /** The session's version with all of it. */
  readonly version: number;
  /** The numbers (`seq`) of the changes that the server refused, and why. */
  readonly refused: readonly {
    readonly seq: number;
    readonly code: string;
    readonly message: string;
  }[];
}

export type { Checkpoint };

/** A value of this device alone: kept with the session, never sent. */
export interface LocalValue<T> {
  get(): T | undefined;
  /** Any value that structured clone can copy; `undefined` removes it. */
  set(value: T | undefined): void;
  /** Calls back after each `set` in this tab, and once when the device's value has been read. */
  subscribe(listener: () => void): () => void;
}

/** What `addEventListener` offers, each as a `CustomEvent` with this `detail`. */
export interface SessionEvents {
  /** `status.connection` has become another. */
  connectionStatusChanged: { connection: Status["connection"] };
  /**
   * The line was lost: closed, or silent for the server's `timeout_ms`. A page that woke up (was
   * shown again, resumed, came back online, or whose machine slept) knows within a second.
   */
  disconnectionDetected: { connection: Status["connection"] };
  /** The line stands again after an attempt that failed, or after a `disconnectionDetected`. */
  reconnectionDetected: { connection: Status["connection"] };
  /** Ten attempts in a row have failed. It goes on trying, at intervals of up to a minute. */
  maxReconnectAttemptsReached: { attempts: number };
  /** The server sent the whole state: the first time, and when what was missed weighed more. */
  initialStateReceived: { version: number; created: boolean };
  /** A commit was applied, by whomever. */
  stateUpdateReceived: Commit;
  /** The session was set back to what it was at an earlier version. */
  sessionRestored: Commit;
  /** After a reload: what this device had was put back, with changes that are still to be sent. */
  stateRestored: { version: number; pending: number };
  /** The server refused a change for good; it is in `session.rejected` now. */
  changeRejected: { ref: string; code: string; message: string };
  /** A merge did not keep a value, here or on another device; see `session.conflicts`. */
  conflictDetected: ConflictRecord;
  /**
   * The application is too old, for the session's schema (see `status.readOnly`), or for what a
   * newer release keeps on this device (it works in memory then). Have the page reloaded.
   */
  upgradeRequired: { message: string };
  /**
   * The server's history was lost (a backup was restored). `lost.state` is what this device had
   * confirmed before; what the server had not decided has been sent again.
   */
  historyLost: { lost: { epoch: string | null; version: number; state: JsonObject } };
  /** The server has every change of this device. */
  saved: { version: number };
  /** A checkpoint of the session was saved, by whomever. */
  checkpointSaved: { checkpoint: Checkpoint };
  /** What another device told with `session.presence`. */
  presence: { device_id: string; data: unknown };
}

/** An `EventTarget` that knows what its events carry. */
export interface SessionTarget extends EventTarget {
  addEventListener<Name extends keyof SessionEvents>(
    type: Name,
    listener: (event: CustomEvent<SessionEvents[Name]>) => void,
    options?: AddEventListenerOptions | boolean,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: AddEventListenerOptions | boolean,
  ): void;
  removeEventListener<Name extends keyof SessionEvents>(
    type: Name,
    listener: (event: CustomEvent<SessionEvents[Name]>) => void,
    options?: EventListenerOptions | boolean,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: EventListenerOptions | boolean,
  ): void;
}
