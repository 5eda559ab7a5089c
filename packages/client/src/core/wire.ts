/**
 * The frames and records of the protocol (protocol, sections 3 to 5), with what they are called
 * before they are sent.
 */

import type * as wire from "./wire.gen.js";

export type * from "./wire.gen.js";

/** A change as it is kept: with a `type` it is the frame that is sent, however often. */
export interface Change extends Omit<wire.Change, "type" | "epoch"> {
  /** Null only until the server has created the session that this device started offline. */
  readonly epoch: string | null;
}

/** A client's outbox over HTTP (protocol, T11). */
export interface ChangesBody {
  readonly client_id: string;
  readonly device: wire.HelloDevice;
  readonly t: number;
  readonly changes: readonly Change[];
}

/** What `initial_state` and `resumed` have in common. */
export type Welcome = Omit<wire.InitialState, "type" | "state">;
