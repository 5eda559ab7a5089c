import { baseOf, browserEnvironment, type Environment, uuid } from "./env.js";
import { ask } from "./http.js";
import { idbStore } from "./kv/idb.js";
import { memoryStore } from "./kv/memory.js";
import type { Store } from "./kv/store.js";
import { deviceOf } from "./users.js";

export interface RedeemOptions {
  /**
   * Where the server is, with the prefix it is mounted under: whole, or relative to the page
   * (`/sessions`). The page's origin by default.
   */
  url?: string;
  /** How this device is shown to the session's other devices. */
  device?: { name?: string };
  env?: Partial<Environment>;
  store?: Store;
}

/**
 * Redeems a link that another device made (`session.handOff`), for what `connect` needs here. This
 * device may do so again within ten minutes, and no other one.
 *
 * ```ts
 * const secret = /^#handoff=(.+)/.exec(location.hash)?.[1];
 * if (secret) {
 *   history.replaceState(null, "", location.pathname);
 *   const { session, token } = await redeem(secret);
 *   keep(session, token);   // it is this device's own from now on
 * }
 * ```
 *
 * Rejects with a `ReattachError`: `handoff_over` for a link that is over or was none,
 * `unreachable` where the server does not answer.
 */
export async function redeem(
  secret: string,
  options: RedeemOptions = {},
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
