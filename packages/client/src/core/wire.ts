/** The frames and records of the protocol, as types (protocol, sections 3 to 5). */

import type { Json, JsonObject } from "./json.js";

/** An operation: what a user meant (protocol, section 3). `path` is a JSON Pointer with `#id`. */
export type Operation =
  | { readonly op: "set"; readonly path: string; readonly value: Json }
  | { readonly op: "unset"; readonly path: string }
  | {
      readonly op: "insert";
      readonly path: string;
      readonly value: Json;
      readonly after?: string | null;
    }
  | { readonly op: "move"; readonly path: string; readonly after?: string | null }
  | { readonly op: "inc"; readonly path: string; readonly by: number }
  | Splice
  | { readonly op: "test"; readonly path: string; readonly value: Json }
  | { readonly op: "restore"; readonly version?: number; readonly checkpoint_id?: string }
  | {
      readonly op: "resolve";
      readonly conflict_id: string;
      readonly keep: "kept" | "lost" | { readonly value: Json };
    }
  | { readonly op: "end" };

export interface Splice {
  readonly op: "splice";
  readonly path: string;
  /** In Unicode code points, as is `delete`. */
  readonly index: number;
  readonly delete: number;
  readonly insert: string;
}

/** A numbered change, exactly as it is sent, however often. */
export interface Change {
  readonly seq: number;
  /** Null only until the server has created the session that this device started offline. */
  readonly epoch: string | null;
  readonly base: number;
  /** Milliseconds since 1970 by this device's clock. */
  readonly at: number;
  readonly ops: readonly Operation[];
  readonly schema_version?: number;
}

/** One step of a patch: RFC 6902, and text by code points. A token under a list is an index. */
export type PatchOperation =
  | { readonly op: "add" | "replace"; readonly path: string; readonly value: Json }
  | { readonly op: "remove"; readonly path: string }
  | { readonly op: "move"; readonly from: string; readonly path: string }
  | TextPatch;

export type TextPatch =
  | { readonly op: "str_ins"; readonly path: string; readonly pos: number; readonly str: string }
  | { readonly op: "str_del"; readonly path: string; readonly pos: number; readonly len: number };

export interface Author {
  readonly client_id?: string | null;
  readonly seq?: number | null;
  readonly device_id?: string | null;
  readonly user_id?: string | null;
  readonly source?: "device" | "server";
}

export interface Side {
  readonly value?: Json;
  readonly absent?: boolean;
  readonly by?: Author;
  readonly at?: number;
  readonly version?: number;
}

export interface Conflict {
  readonly id: string;
  readonly path: string;
  readonly policy: string;
  readonly status: "auto" | "open" | "resolved";
  readonly kept: Side;
  readonly lost: Side;
  readonly version: number;
}

export interface Commit {
  readonly type: "state_update" | "session_restored";
  readonly version: number;
  readonly patch: readonly PatchOperation[];
  readonly by: Author;
  readonly at: number;
  readonly conflicts?: readonly Conflict[];
  readonly from_version?: number;
  readonly to_version?: number;
  readonly checkpoint_id?: string | null;
}

export interface Rejection {
  readonly seq: number;
  readonly code: string;
  readonly message: string;
  readonly path?: string | null;
}

export interface Device {
  readonly id: string;
  readonly name?: string | null;
  readonly online: boolean;
  readonly is_primary: boolean;
  /** Milliseconds since 1970. */
  readonly last_activity: number;
}

/** What `initial_state` and `resumed` have in common. */
export interface Welcome {
  readonly epoch: string;
  readonly version: number;
  readonly seq: number;
  readonly seq_at?: number | null;
  readonly rejected?: readonly Rejection[];
  readonly created?: boolean;
  readonly user_id?: string;
  readonly role?: string;
  readonly devices?: readonly Device[];
  readonly conflicts?: readonly Conflict[];
  readonly policies?: Readonly<Record<string, string>>;
  readonly schema?: { readonly name: string; readonly version: number } | null;
  readonly server_time?: number;
  readonly heartbeat?: { readonly interval_ms: number; readonly timeout_ms: number };
  readonly reconnect_jitter_ms?: number;
  readonly limits?: Readonly<Record<string, number>>;
}

export type ServerFrame =
  | ({ readonly type: "initial_state"; readonly state: JsonObject } & Welcome)
  | ({ readonly type: "resumed"; readonly commits: readonly Commit[] } & Welcome)
  | Commit
  | ({ readonly type: "rejected" } & Rejection)
  | { readonly type: "checkpoint_saved"; readonly checkpoint: Json; readonly ref?: string }
  | { readonly type: "devices"; readonly devices: readonly Device[] }
  | { readonly type: "presence"; readonly device_id: string; readonly data: Json }
  | { readonly type: "heartbeat"; readonly t?: number; readonly server_time?: number }
  | {
      readonly type: "error";
      readonly code: string;
      readonly message: string;
      readonly ref?: string | null;
      readonly retry_after_ms?: number | null;
      readonly expected?: number | null;
    };

export interface Identity {
  readonly id: string;
  readonly name?: string;
  readonly info?: Json;
}

export interface Create {
  readonly state?: JsonObject;
  readonly schema?: string;
}

export type ClientFrame =
  | {
      readonly type: "hello";
      readonly client_id: string;
      readonly device: Identity;
      readonly t: number;
      readonly epoch: string | null;
      readonly version: number | null;
      readonly seq: number;
      readonly token?: string;
      readonly schema_version?: number;
      readonly create?: Create;
    }
  | ({ readonly type: "change" } & Change)
  | { readonly type: "heartbeat"; readonly t: number }
  | {
      readonly type: "request_sync";
      readonly epoch: string | null;
      readonly version: number | null;
    }
  | { readonly type: "presence"; readonly data: Json };
