/**
 * What one client keeps on its device, as rows of a key-value store (protocol, "The outbox").
 *
 * `meta` is read and written in every transaction: who finds another `rev` than it knows has not
 * applied everything yet, and reads what is new before it writes. So a number is given out only by
 * a tab that has applied every earlier change.
 *
 * | key | value |
 * | --- | --- |
 * | `meta` | `Meta` |
 * | `snapshot` | `Confirmed`: a confirmed state |
 * | `commit/<version>` | `StoredCommit`: the commits after it |
 * | `change/<seq>` | `StoredChange`: what the server has not decided |
 * | `rejected/<ref>` | `Rejected`: what it refused |
 * | `conflicts` | `Conflict[]`: those not settled |
 * | `terms` | `Terms`: the schema's, as the server last said |
 */

import type { Confirmed, Unsure } from "./replica.js";
import type { Change, Conflict, InitialState, Operation, PatchOperation, Schema } from "./wire.js";

export interface Meta {
  /** How the rows are to be read: `FORMAT` of who wrote last; left out: 1. */
  readonly format?: number;
  /** +1 with each transaction that writes. */
  readonly rev: number;
  /** +1 when the changes are numbered anew: whoever knows another one reads them all. */
  readonly generation: number;
  readonly client_id: string;
  /** The next number to give out. */
  readonly next: number;
  /** The `at` of the newest change. */
  readonly at: number;
  /** The highest number whose decision is known, and the `at` of its change. */
  readonly decided: number;
  readonly decided_at: number | null;
  /** The newest confirmed version on the disk; null before the first. */
  readonly epoch: string | null;
  readonly version: number | null;
  /** The version of the row `snapshot`. */
  readonly snapshot: number | null;
  /** What the snapshot and the commits after it weigh, in characters of JSON. */
  readonly weight: number;
  readonly tail: number;
}

/**
 * A release that writes rows which an older one would read wrongly counts this up. The older one then
 * leaves them alone.
 */
export const FORMAT = 1;

/** What the session's schema is, and how writes of its fields merge. */
export interface Terms {
  readonly schema: Schema | null;
  /** By path, with `*` for any token; `latest` where nothing is said. */
  readonly policies: InitialState["policies"];
}

export const NO_TERMS: Terms = Object.freeze({ schema: null, policies: Object.freeze({}) });

export interface StoredChange {
  readonly ref: string;
  readonly change: Change;
  /** Its operations as they read over the newest confirmed version, where that is another way. */
  readonly view?: readonly Operation[];
  readonly unsure?: Unsure;
}

export interface StoredCommit {
  readonly version: number;
  readonly patch: readonly PatchOperation[];
  /** The change of this client that it decided. */
  readonly ref?: string;
}

/** A change that the server refused for good, or that it could not even read. */
export interface Rejected extends StoredChange {
  readonly code: string;
  readonly message: string;
  readonly path?: string;
}

/** What a transaction found beyond what its reader knew. */
export interface Found {
  readonly meta: Meta;
  /** With `all`: every change; else those from the reader's `next` on. */
  readonly all: boolean;
  readonly changes: readonly StoredChange[];
  readonly snapshot: Confirmed | null;
  readonly commits: readonly StoredCommit[];
  readonly rejected: readonly Rejected[];
  readonly conflicts: readonly Conflict[];
  readonly terms: Terms;
}

/** One row to put, or with `value` undefined one to delete; with `to`, all from `key` up to it. */
export interface Write {
  readonly key: string;
  readonly value?: unknown;
  readonly to?: string;
}

const DIGITS = 16;

export const rows = {
  meta: "meta",
  snapshot: "snapshot",
  conflicts: "conflicts",
  terms: "terms",
  rejectedAll: "rejected/",
  commit: (version: number) => `commit/${String(version).padStart(DIGITS, "0")}`,
  change: (seq: number) => `change/${String(seq).padStart(DIGITS, "0")}`,
  rejected: (ref: string) => `rejected/${ref}`,
  /** Behind every key that starts with `prefix`. */
  end: (prefix: string) => `${prefix}\uffff`,
};
