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

interface Passing {
  readonly from: string | undefined;
  readonly to: string;
  /** The device that the outbox is known to the server by. */
  readonly deviceId: string;
  readonly newId: () => string;
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
  if (mine.length > 1) for (const prefix of mine) if (await waits(tx, prefix)) return prefix;
  return mine[0] ?? homeOf(place, user);
}

/** Makes an outbox that of another user; who had it before begins with an empty one. */
export async function passOn(
  tx: Transaction,
  place: Place,
  prefix: string,
  { from, to, deviceId, newId }: Passing,
): Promise<void> {
  if (from === to) return;
  const all = await outboxes(tx, place);
  const of = (user: string | undefined) =>
    (all[user ?? ""] ?? [homeOf(place, user)]).filter((one) => one !== prefix);
  const left = of(from);
  tx.put(keyOf(place), {
    ...all,
    [from ?? ""]: left.length > 0 ? left : [`${homeOf(place, from)}${newId()}/`],
    [to]: [prefix, ...of(to)],
  });
  tx.put(`${prefix}device`, deviceId);
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
  const slots = ((await tx.get(`${prefix}tabs`)) ?? 0) as number;
  const parts = [prefix, ...Array.from({ length: slots }, (_, slot) => `${prefix}tab/${slot}/`)];
  for (const part of parts) {
    const changes = await tx.range(part + rows.change(0), part + rows.end("change/"));
    if (changes.length > 0) return true;
  }
  return false;
}
