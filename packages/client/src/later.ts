/**
 * What a page can do without at first, and most of them for ever: modules that are not loaded with the
 * rest. They are fetched when the first line stands, so that they are here when the network is not, or
 * when the server has another release of them.
 *
 * Only what needs the server anyway may come later: what makes a change, shows one, stores one or sends
 * one over a WebSocket is always here.
 */

import { ReattachError } from "./core/errors.js";

/** What is asked of the server beside the line. Rejects with a `ReattachError` (`unreachable`). */
export function beside(): Promise<typeof import("./beside.js")> {
  return import("./beside.js").catch(() => {
    throw new ReattachError("unreachable", "a part of the client could not be loaded: try again");
  });
}

/** The line for where no WebSocket comes through. */
export function streams(): Promise<typeof import("./sse.js")> {
  return import("./sse.js");
}

export function prefetch(): void {
  for (const part of [beside, streams]) part().catch(() => {});
}
