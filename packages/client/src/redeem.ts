import type { Environment } from "./env.js";
import type { Store } from "./kv/store.js";
import { beside } from "./later.js";

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
  return (await beside()).redeem(secret, options);
}
