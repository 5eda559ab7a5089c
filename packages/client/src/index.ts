/**
 * Reattach in the browser: state that survives lost connections, closed tabs and dead servers.
 *
 * @packageDocumentation
 */

import type { ConnectOptions } from "./api.js";
import type { JsonObject } from "./core/json.js";
import { Session } from "./session.js";

/**
 * Opens a session, at once and offline too: what this device knows of it is shown as soon as its
 * disk has answered, the server's part follows. Await `ready` before you read or change the state.
 *
 * ```ts
 * const session = connect<{ title: string }>({ session: "draft-7", create: { state: { title: "" } } });
 * await session.ready;
 * session.subscribe(() => render(session.state, session.status));
 * session.update((draft) => {
 *   draft.title = "Minutes";
 * });
 * ```
 *
 * Throws a `ReattachError` (`bad_url`) outside of a page without `url`, and a `TypeError` for a url
 * that is none.
 */
export function connect<State extends object = JsonObject>(
  options: ConnectOptions,
): Session<State> {
  return new Session<State>(options);
}

export type {
  Change,
  Checkpoint,
  Conflict,
  ConnectOptions,
  DeepReadonly,
  Handoff,
  Imported,
  LocalValue,
  Outbox,
  RejectedChange,
  SessionEvents,
  Token,
} from "./api.js";
export { OpError, ReattachError } from "./core/errors.js";
export type { Json, JsonArray, JsonObject } from "./core/json.js";
export type { Status } from "./core/session.js";
export type { Change as SentChange, DeviceStatus as Device, Operation } from "./core/wire.js";
export type { Environment } from "./env.js";
export { memoryStore } from "./kv/memory.js";
export type { Store, Transaction } from "./kv/store.js";
export { type RedeemOptions, redeem } from "./redeem.js";
export { Session } from "./session.js";
