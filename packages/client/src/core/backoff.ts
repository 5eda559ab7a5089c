/**
 * How long to wait before the next attempt: full jitter (Marc Brooker, "Exponential Backoff And
 * Jitter", AWS Architecture Blog, 2015), so that clients which lost one server do not come back
 * together.
 */

const FIRST_MS = 500;
const LONGEST_MS = 30_000;
/** After so many attempts that they are no news any more. */
const SLOWLY_MS = 60_000;

/** Milliseconds before attempt `attempt` (from 0); `random` lies in [0, 1). */
export function delay(attempt: number, random: number, slowly = false): number {
  const longest = slowly ? SLOWLY_MS : LONGEST_MS;
  return random * Math.min(longest, FIRST_MS * 2 ** Math.min(attempt, 16));
}
