/**
 * The frames of the protocol, and what they carry (protocol, sections 3 to 5). Made from
 * src/reattach/wire.py by `make types`.
 */

import type { Json } from "./json.js";

export type Operation =
  | SetOp
  | UnsetOp
  | InsertOp
  | MoveOp
  | IncOp
  | SpliceOp
  | TestOp
  | RestoreOp
  | ResolveOp
  | EndOp;

export type ClientFrame = Change | Hello | Heartbeat | RequestSync | SaveCheckpoint | Presence;

export type PatchOperation =
  | AddStep
  | ReplaceStep
  | RemoveStep
  | MoveStep
  | InsertText
  | DeleteText;

export type Commit = StateUpdate | SessionRestored;

export type ServerFrame =
  | InitialState
  | Resumed
  | StateUpdate
  | SessionRestored
  | Rejected
  | CheckpointSaved
  | Devices
  | PresenceOf
  | HeartbeatEcho
  | Error;

/** An atomic list of operations by one client, numbered by it without gaps. */
export interface Change {
  readonly type: "change";
  readonly seq: number;
  readonly epoch: string;
  readonly base: number;
  readonly at: number;
  readonly ops: readonly Operation[];
  readonly schema_version?: number | null;
}

/** The first frame of a connection: who it is and what it has. */
export interface Hello {
  readonly type: "hello";
  readonly client_id: string;
  readonly device: HelloDevice;
  readonly t: number;
  readonly epoch?: string | null;
  readonly version?: number | null;
  readonly seq?: number;
  readonly token?: string | null;
  readonly user_id?: string | null;
  readonly schema_version?: number | null;
  readonly create?: Create | null;
}

/** What a client says of the device that it runs on. `info` is any object up to 4 KiB. */
export interface HelloDevice {
  readonly id: string;
  readonly name?: string | null;
  readonly info?: { readonly [key: string]: Json } | null;
}

/** What a session is created with when it is not there. */
export interface Create {
  readonly state?: { readonly [key: string]: Json } | null;
  readonly schema?: string | null;
}

/** A sign of life; `t` comes back as it is. */
export interface Heartbeat {
  readonly type: "heartbeat";
  readonly t?: Json;
}

/** Asks for what is missing after a version. */
export interface RequestSync {
  readonly type: "request_sync";
  readonly epoch?: string | null;
  readonly version?: number | null;
}

/** Asks for a mark on the current version. */
export interface SaveCheckpoint {
  readonly type: "save_checkpoint";
  readonly ref: string;
  readonly name?: string | null;
  readonly data?: Json;
}

/** Tells the other connections something that is not stored. */
export interface Presence {
  readonly type: "presence";
  readonly data?: Json;
}

/** Creates or replaces. */
export interface SetOp {
  readonly op: "set";
  readonly path: string;
  readonly value: Json;
}

/** Removes a key or an element. */
export interface UnsetOp {
  readonly op: "unset";
  readonly path: string;
}

/** Inserts into a list: after an id, at the front (null), or at the end (left out). */
export interface InsertOp {
  readonly op: "insert";
  readonly path: string;
  readonly value: Json;
  readonly after?: string | null;
}

/** Moves an element within its list, as `InsertOp` places one. */
export interface MoveOp {
  readonly op: "move";
  readonly path: string;
  readonly after?: string | null;
}

/** Adds to a number. */
export interface IncOp {
  readonly op: "inc";
  readonly path: string;
  readonly by: number;
}

/** Edits text. Positions are Unicode code points, in the text as the author saw it. */
export interface SpliceOp {
  readonly op: "splice";
  readonly path: string;
  readonly index: number;
  readonly delete: number;
  readonly insert: string;
}

/** Refuses the change where the value is another one. */
export interface TestOp {
  readonly op: "test";
  readonly path: string;
  readonly value: Json;
}

/** Makes the state that of a version, or of a checkpoint. Alone in its change. */
export interface RestoreOp {
  readonly op: "restore";
  readonly version?: number;
  readonly checkpoint_id?: string;
}

/** Settles a conflict. Alone in its change. */
export interface ResolveOp {
  readonly op: "resolve";
  readonly conflict_id: string;
  readonly keep: "kept" | "lost" | KeptValue;
}

/** A value that settles a conflict. */
export interface KeptValue {
  readonly value: Json;
}

/** Ends the session. Alone in its change. */
export interface EndOp {
  readonly op: "end";
}

/** The welcome with the whole state. */
export interface InitialState {
  readonly type: "initial_state";
  readonly session_id: string;
  readonly epoch: string;
  readonly epoch_version: number;
  readonly version: number;
  readonly seq: number;
  readonly seq_at: number | null;
  readonly rejected: readonly Rejected[];
  readonly created: boolean;
  readonly user_id: string;
  readonly role: string;
  readonly devices: readonly DeviceStatus[];
  readonly conflicts: readonly Conflict[];
  readonly policies: { readonly [key: string]: string };
  readonly schema?: Schema;
  readonly server_time: number;
  readonly heartbeat: HeartbeatTimes;
  readonly reconnect_jitter_ms: number;
  readonly limits: { readonly [key: string]: number };
  readonly state: { readonly [key: string]: Json };
}

/** A device of the session, as the others see it. */
export interface DeviceStatus {
  readonly id: string;
  readonly name: string | null;
  readonly online: boolean;
  readonly is_primary: boolean;
  readonly last_activity: number;
}

/** The session's schema. */
export interface Schema {
  readonly name: string;
  readonly version: number;
}

/** When to send a heartbeat, and when silence means disconnected. */
export interface HeartbeatTimes {
  readonly interval_ms: number;
  readonly timeout_ms: number;
}

/** The welcome with every commit after the client's version, in order. */
export interface Resumed {
  readonly type: "resumed";
  readonly session_id: string;
  readonly epoch: string;
  readonly epoch_version: number;
  readonly version: number;
  readonly seq: number;
  readonly seq_at: number | null;
  readonly rejected: readonly Rejected[];
  readonly created: boolean;
  readonly user_id: string;
  readonly role: string;
  readonly devices: readonly DeviceStatus[];
  readonly conflicts: readonly Conflict[];
  readonly policies: { readonly [key: string]: string };
  readonly schema?: Schema;
  readonly server_time: number;
  readonly heartbeat: HeartbeatTimes;
  readonly reconnect_jitter_ms: number;
  readonly limits: { readonly [key: string]: number };
  readonly commits: readonly Commit[];
}

/** A commit: the exact patch from `version - 1`. To its author, the acknowledgement. */
export interface StateUpdate {
  readonly type: "state_update";
  readonly version: number;
  readonly patch: readonly PatchOperation[];
  readonly by: By;
  readonly at: number;
  readonly conflicts?: readonly Conflict[];
}

/** Whose a commit or a value is. What the server wrote has no device. */
export interface By {
  readonly client_id: string | null;
  readonly seq?: number | null;
  readonly device_id: string | null;
  readonly user_id: string | null;
  readonly source: "device" | "server";
}

/** A commit that set the state back to that of an earlier version. */
export interface SessionRestored {
  readonly type: "session_restored";
  readonly version: number;
  readonly patch: readonly PatchOperation[];
  readonly by: By;
  readonly at: number;
  readonly conflicts?: readonly Conflict[];
  readonly from_version: number;
  readonly to_version: number;
  readonly checkpoint_id?: string;
}

/** A change was refused for good; its number is used up. */
export interface Rejected {
  readonly type: "rejected";
  readonly seq: number;
  readonly code: string;
  readonly message: string;
  readonly path?: string;
}

/** A checkpoint is durable. */
export interface CheckpointSaved {
  readonly type: "checkpoint_saved";
  readonly checkpoint: Checkpoint;
  readonly ref?: string;
}

/** A mark on a version whose state can always be had. */
export interface Checkpoint {
  readonly id: string;
  readonly name: string | null;
  readonly kind: "automatic" | "named" | "before_restore";
  readonly version: number;
  readonly step?: Json;
  readonly data?: Json;
  readonly created_at: number;
}

/** The session's devices, at most once a second. */
export interface Devices {
  readonly type: "devices";
  readonly devices: readonly DeviceStatus[];
}

/** What another device told. */
export interface PresenceOf {
  readonly type: "presence";
  readonly device_id: string;
  readonly data: Json;
}

/** The answer to a heartbeat. */
export interface HeartbeatEcho {
  readonly type: "heartbeat";
  readonly t: Json;
  readonly server_time: number;
}

/** Something could not be done, and no number was used up. */
export interface Error {
  readonly type: "error";
  readonly code: string;
  readonly message: string;
  readonly ref?: string;
  readonly retry_after_ms?: number;
  readonly expected?: number;
}

/** A record of a value that a merge did not keep. `status`: auto, open or resolved. */
export interface Conflict {
  readonly id: string;
  readonly path: string;
  readonly policy: string;
  readonly status: "auto" | "open" | "resolved";
  readonly kept: ConflictSide;
  readonly lost: ConflictSide;
  readonly version: number;
}

/**
 * A value of a conflict, or `absent`, and whose it is.
 *
 * `merged`: others had their part in it, as in a sum or a text; `by` wrote last. `base`: the
 * version over which a text was typed that lost.
 */
export interface ConflictSide {
  readonly value?: Json;
  readonly absent?: boolean;
  readonly merged?: boolean;
  readonly base?: number;
  readonly by: By;
  readonly at: number;
  readonly version?: number;
}

/** Adds a member, or an element before an index (RFC 6902). */
export interface AddStep {
  readonly op: "add";
  readonly path: string;
  readonly value: Json;
}

/** Replaces what is there (RFC 6902). */
export interface ReplaceStep {
  readonly op: "replace";
  readonly path: string;
  readonly value: Json;
}

/** Removes what is there (RFC 6902). */
export interface RemoveStep {
  readonly op: "remove";
  readonly path: string;
}

/** Takes a value out, and adds it elsewhere (RFC 6902). */
export interface MoveStep {
  readonly op: "move";
  readonly from: string;
  readonly path: string;
}

/** Puts text in before `pos`, in code points. */
export interface InsertText {
  readonly op: "str_ins";
  readonly path: string;
  readonly pos: number;
  readonly str: string;
}

/** Takes `len` code points out, from `pos` on. */
export interface DeleteText {
  readonly op: "str_del";
  readonly path: string;
  readonly pos: number;
  readonly len: number;
}
