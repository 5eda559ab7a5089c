/** What goes into the core and what comes out of it. The core itself does nothing. */

import type { Found } from "./outbox.js";
import type { Confirmed } from "./replica.js";
import type {
  Checkpoint,
  ClientFrame,
  Commit,
  Conflict,
  DeviceStatus,
  ServerFrame,
} from "./wire.js";

/**
 * - `connect`: until the next attempt
 * - `greet`: until a welcome must have come
 * - `beat`: until the line is to be looked at
 * - `resend`: until the server wants to hear a change again
 * - `store`: until the disk is tried again
 * - `watch`: until the clock is looked at, for a jump
 */
export type TimerName = "connect" | "greet" | "beat" | "resend" | "store" | "watch";

export type Input =
  /** What the store holds; null where it is new. `durable`: it outlives the page; else why not. */
  | {
      readonly type: "loaded";
      readonly found: Found | null;
      readonly deviceId: string;
      readonly durable: boolean;
      readonly error?: string;
      /** A newer release keeps things there: this page works in memory. */
      readonly outdated?: boolean;
    }
  /** Whether this tab holds the outbox's lock; `exclusive`: by a lock, not for want of locks. */
  | { readonly type: "lead"; readonly leading: boolean; readonly exclusive: boolean }
  /** There is a token, however long its user took: a connection is being made. */
  | { readonly type: "dialing" }
  /** `userId`: who this device takes for the one who is signed in. */
  | {
      readonly type: "opened";
      readonly token?: string | undefined;
      readonly userId?: string | undefined;
    }
  | { readonly type: "frame"; readonly frame: ServerFrame }
  | { readonly type: "closed"; readonly code: number; readonly reason?: string }
  | { readonly type: "timer"; readonly name: TimerName }
  | { readonly type: "network"; readonly online: boolean }
  /** The page is shown, or not; `woken`: it may have stood still until now. */
  | { readonly type: "page"; readonly visible: boolean; readonly woken: boolean }
  /** Whether the browser promises to keep what is stored. */
  | { readonly type: "persisted"; readonly persisted: boolean }
  | { readonly type: "stored" }
  /** `outdated`: a newer release has written there, whose rows this one must not touch. */
  | { readonly type: "store_failed"; readonly message: string; readonly outdated?: boolean }
  /** What became of a client's changes; null where it could not be had. */
  | { readonly type: "history"; readonly commits: readonly HistoryItem[] | null }
  | { readonly type: "presence"; readonly data: unknown }
  /** What the leading tab knows of the line. */
  | { readonly type: "mirror"; readonly line: LineView }
  | { readonly type: "stop" };

/** A commit of the history. `client_at` is the change's `at` as its client sent it. */
export type HistoryItem = Pick<Commit, "by" | "at"> & { readonly client_at?: number | null };

export type Connection = "connecting" | "online" | "reconnecting" | "offline" | "closed";

export interface LineView {
  readonly connection: Connection;
  readonly error: { readonly code: string; readonly message: string } | null;
  readonly devices: readonly DeviceStatus[];
  /** The server takes no changes from an application as old as this one. */
  readonly readOnly: boolean;
}

export type SessionEvent =
  | {
      readonly type: "initialStateReceived";
      readonly detail: { readonly version: number; readonly created: boolean };
    }
  | { readonly type: "stateUpdateReceived" | "sessionRestored"; readonly detail: Commit }
  | {
      readonly type: "changeRejected";
      readonly detail: { readonly ref: string; readonly code: string; readonly message: string };
    }
  | { readonly type: "conflictDetected"; readonly detail: Conflict }
  | { readonly type: "stateRestored"; readonly detail: { version: number; pending: number } }
  | { readonly type: "maxReconnectAttemptsReached"; readonly detail: { attempts: number } }
  | { readonly type: "upgradeRequired"; readonly detail: { readonly message: string } }
  | { readonly type: "historyLost"; readonly detail: { readonly lost: Confirmed } }
  | { readonly type: "saved"; readonly detail: { readonly version: number } }
  | { readonly type: "checkpointSaved"; readonly detail: { readonly checkpoint: Checkpoint } }
  | {
      readonly type: "presence";
      readonly detail: { readonly device_id: string; readonly data: unknown };
    };

export type Effect =
  | { readonly type: "connect" }
  | { readonly type: "send"; readonly frame: ClientFrame }
  | { readonly type: "disconnect" }
  /** Run a transaction: `take` in it, then feed `stored` or `store_failed`. */
  | { readonly type: "store" }
  /** `ms` null: forget the timer. Setting it again replaces it. */
  | { readonly type: "timer"; readonly name: TimerName; readonly ms: number | null }
  | { readonly type: "history"; readonly clientId: string; readonly from: number }
  | { readonly type: "event"; readonly event: SessionEvent }
  /** The change is on the disk (`durable`), or will only ever be in memory. */
  | { readonly type: "kept"; readonly ref: string; readonly durable: boolean }
  /** The server decided the change; `error` says why it refused. */
  | {
      readonly type: "decided";
      readonly ref: string;
      readonly error?: { readonly code: string; readonly message: string };
    }
  /** The state, the status or a list may be another one now. */
  | { readonly type: "changed" }
  /** The other tabs look into the store; with `alone`, they cannot rely on it any more. */
  | { readonly type: "poke"; readonly alone?: boolean }
  /** The other tabs hear what the line does. */
  | { readonly type: "tell" }
  /** The shared store does not take this tab's changes: go on with one in memory. */
  | { readonly type: "detach" };
