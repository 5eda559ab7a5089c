/**
 * What the users of one browser profile have in its store, apart from each other: each has a device
 * id and an outbox for each session. An outbox passes to another user by `claim` alone.
 *
 * | key | value |
 * | --- | --- |
 * | `device` | the device id of whoever uses the profile without having signed in |
 * | `device/<user>` | that of a user |
 * | `outboxes/<url>/<session>` | `Outboxes`: whose are elsewhere than `homeOf` says, after a claim |
 * | `<outbox>device` | the device id that came with an outbox |
 */

import { rows } from "./core/outbox.js";
import type { Transaction } from "./kv/store.js";

export interface Place {
  /** The server's address. */
  readonly base: string;
  readonly session: string;
}

/** By user (`""`: nobody), the prefixes of the outboxes that are theirs, newest first. */
type Outboxes = Readonly<Record<string, readonly string[]>>;

/** The prefix of a user's outbox. */
export async function outboxOf(
  tx: Transaction,
  place: Place,
  user: string | undefined,
): Promise<string> {
  const mine = (await outboxes(tx, place))[user ?? ""] ?? [homeOf(place, user)];
  // Work that waits goes first, whichever outbox it is in.
  for (const prefix of mine) if (await waits(tx, prefix)) return prefix;
  return mine[0] ?? homeOf(place, user);
}

/** The device's id for an outbox. Chosen once for each user of the profile. */
export async function deviceOf(
  tx: Transaction,
  prefix: string,
  user: string | undefined,
  newId: () => string,
): Promise<string> {
  const key = user === undefined ? "device" : `device/${user}`;
  const kept = (await tx.get(`${prefix}device`)) ?? (await tx.get(key));
  if (kept !== undefined) return kept as string;
  const fresh = newId();
  tx.put(key, fresh);
  return fresh;
}

function homeOf({ base, session }: Place, user: string | undefined): string {
  return `${[base, user ?? "", session].map(encodeURIComponent).join("/")}/`;
}

async function outboxes(tx: Transaction, place: Place): Promise<Outboxes> {
  return ((await tx.get(keyOf(place))) ?? {}) as Outboxes;
}

function keyOf({ base, session }: Place): string {
  return `outboxes/${[base, session].map(encodeURIComponent).join("/")}`;
}

async function waits(tx: Transaction, prefix: string): Promise<boolean> {
  const changes = rows.change(0);
  return (await tx.range(prefix + changes, prefix + rows.end("change/"))).length > 0;
}
