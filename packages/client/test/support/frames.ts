/** Frames of a server, whole, from what a test is about. */

import type { Json } from "../../src/core/json";
import type { By, Commit, Conflict, Rejected, StateUpdate, Welcome } from "../../src/core/wire";

export function by(client: string, seq?: number): By {
  return {
    client_id: client,
    ...(seq !== undefined && { seq }),
    device_id: null,
    user_id: "u",
    source: "device",
  };
}

export function commit(
  version: number,
  patch: Commit["patch"],
  author: By = by("other", 1),
  more: Partial<StateUpdate> = {},
): StateUpdate {
  return { type: "state_update", version, patch, by: author, at: 1, ...more };
}

export function rejected(seq: number, code: string, path?: string): Rejected {
  return { type: "rejected", seq, code, message: "no", ...(path !== undefined && { path }) };
}

export function welcome(given: Partial<Welcome> = {}): Welcome {
  return {
    session_id: "s",
    epoch: "E",
    epoch_version: 0,
    version: 0,
    seq: 0,
    seq_at: null,
    rejected: [],
    created: false,
    user_id: "u",
    role: "owner",
    devices: [],
    conflicts: [],
    policies: {},
    server_time: 0,
    heartbeat: { interval_ms: 5_000, timeout_ms: 15_000 },
    reconnect_jitter_ms: 1_000,
    limits: {},
    ...given,
  };
}

export function conflict(id: string, path: string, kept: Json, lost: Json): Conflict {
  const side = (value: Json, client: string, version: number) => ({
    value,
    by: by(client),
    at: 1,
    version,
  });
  return {
    id,
    path,
    policy: "latest",
    status: "auto",
    kept: side(kept, "me", 1),
    lost: side(lost, "other", 0),
    version: 1,
  };
}
