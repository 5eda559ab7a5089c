/** What is asked of the server beside the line, when somebody wants it. Loaded when it is (`later.ts`). */

import type { Checkpoint, Handoff, Imported, Outbox } from "./api.js";
import type { Connection } from "./connection.js";
import { ReattachError } from "./core/errors.js";
import type { SessionCore } from "./core/session.js";
import type { Rejected, Change as SentChange } from "./core/wire.js";
import { baseOf, browserEnvironment, type Environment, uuid } from "./env.js";
import { ask } from "./http.js";
import { idbStore } from "./kv/idb.js";
import { memoryStore } from "./kv/memory.js";
import type { Store } from "./kv/store.js";
import type { RedeemOptions } from "./redeem.js";
import { deviceOf } from "./users.js";

/** A session, as far as it is looked at here. */
interface Seen {
  readonly version: number;
  readonly status: { readonly connection: string; readonly pending: number };
  subscribe(listener: () => void): () => void;
}

/** What a part of an outbox may weigh, but for its last change, in characters of JSON. */
const PART = 256 * 1024;

// ── Outboxes ─────────────────────────────────────────────────────────────────────────────────────

/** See `Session.import`. */
export async function importOutbox(
  connection: Connection,
  core: SessionCore,
  session: Seen,
  { outbox, now }: { outbox: Outbox; now: number },
): Promise<Imported> {
  const { session_id, client_id, device, changes } = outbox;
  if (
    session_id !== connection.sessionId ||
    !Array.isArray(changes) ||
    !changes.every((change: Partial<SentChange> | null) => change?.seq)
  ) {
    throw new ReattachError(
      "bad_outbox",
      "expected what session.export() answered for this session, once its changes were stored",
    );
  }
  // What was made before the server had the session is of the epoch that it has now.
  const epoch = core.replica.confirmed?.epoch ?? null;
  if (epoch === null) {
    throw new ReattachError("unreachable", "the server has not answered yet: try again");
  }
  const sent = changes.map((change: SentChange) => ({ ...change, epoch: change.epoch ?? epoch }));
  // What this device has goes by itself: sent beside the line, it would look like a stranger's.
  const own = client_id === core.clientId && core.ownOf(sent);
  if (own) {
    await decided(core, session, new Set(own.keys()));
    const refused = [...core.rejected.values()].flatMap(({ ref, code, message }) => {
      const seq = own.get(ref);
      return seq === undefined ? [] : [{ seq, code, message }];
    });
    return { version: session.version, refused };
  }
  let version = 0;
  const refused: Rejected[] = [];
  for (let first = 0; first === 0 || first < sent.length; ) {
    let last = first;
    for (let room = PART; room > 0 && last < sent.length; last++) {
      room -= JSON.stringify(sent[last]).length;
    }
    const body = { client_id, device, t: now, changes: sent.slice(first, last) };
    const answer = (await connection.ask("/changes", body)) as {
      readonly version: number;
      readonly rejected: readonly Rejected[];
    };
    version = answer.version;
    refused.push(...answer.rejected);
    first = Math.max(1, last);
  }
  return { version, refused };
}

/** Waits until the server has decided the changes of this device that are named. */
async function decided(core: SessionCore, session: Seen, refs: ReadonlySet<string>): Promise<void> {
  const wait = () => core.replica.pending.some(({ ref }) => refs.has(ref));
  await until(session, () => !wait());
  if (wait()) throw closed();
}

/** Waits for a condition, or for the end of the session. */
function until(session: Seen, condition: () => boolean): Promise<void> {
  return new Promise((resolve) => {
    const look = () => {
      if (!condition() && session.status.connection !== "closed") return;
      stop();
      resolve();
    };
    const stop = session.subscribe(look);
    look();
  });
}

function closed(): ReattachError {
  return new ReattachError("closed", "expected an open session: this one was closed before that");
}

// ── Checkpoints ──────────────────────────────────────────────────────────────────────────────────

/** See `Session.saveCheckpoint`. */
export async function saveCheckpoint(
  connection: Connection,
  core: SessionCore,
  session: Seen,
  { ref, ...mark }: { ref: string; name?: string; data?: unknown },
): Promise<Checkpoint> {
  await decided(core, session, new Set(core.replica.pending.map((pending) => pending.ref)));
  await until(session, () => session.status.connection === "online");
  if (session.status.connection !== "online") throw closed();
  return (await connection.ask("/checkpoints", mark, { key: ref })) as Checkpoint;
}

/** See `Session.checkpoints`. */
export async function checkpoints(connection: Connection): Promise<Checkpoint[]> {
  const all: Checkpoint[] = [];
  let next: string | null = null;
  do {
    const query: string = next === null ? "" : `?after=${encodeURIComponent(next)}`;
    const page = (await connection.ask(`/checkpoints${query}`)) as {
      readonly items: readonly Checkpoint[];
      readonly next?: string | null;
    };
    all.push(...page.items);
    next = page.next ?? null;
  } while (next !== null);
  return all;
}

// ── Who is here ──────────────────────────────────────────────────────────────────────────────────

/** Makes a session that nobody had signed in for that of `bearer`'s user, and answers who that is. */
export async function claim(
  connection: Connection,
  claimSecret: string,
  bearer: string | undefined,
): Promise<string> {
  const answer = await connection.ask("/claim", { claim_secret: claimSecret }, { bearer });
  return (answer as { user_id: string }).user_id;
}

/** A link for another device, to `url`. */
export async function handOff(connection: Connection, url: string | undefined): Promise<Handoff> {
  const to = url?.split("#", 1)[0];
  const answer = await connection.ask("/handoff", to === undefined ? {} : { url: to });
  const { link, expires_at: expiresAt } = answer as { link: string; expires_at: number };
  return { link, expiresAt };
}

/** See `redeem.ts`. */
export async function redeem(
  secret: string,
  options: RedeemOptions,
): Promise<{ session: string; token: string; role: string }> {
  const env: Environment = { ...browserEnvironment(), ...options.env };
  const base = baseOf(env, options.url);
  const body = { secret, device: { id: await deviceId(env, options.store), ...options.device } };
  const answer = await ask(env, `${base}/api/v0/handoff`, undefined, body);
  const {
    session_id: session,
    token,
    role,
  } = answer as Record<"session_id" | "token" | "role", string>;
  return { session, token, role };
}

/** The id that `connect` will give to this device. */
async function deviceId(env: Environment, given: Store | undefined): Promise<string> {
  const read = (store: Store) =>
    store.transaction("readwrite", (tx) => deviceOf(tx, "", undefined, () => uuid(env)));
  if (given) return read(given);
  try {
    if (!env.indexedDB) return await read(memoryStore());
    const store = await idbStore("reattach");
    try {
      return await read(store);
    } finally {
      store.close();
    }
  } catch {
    // It forgets everything: then the link is good for this once.
    return uuid(env);
  }
}
