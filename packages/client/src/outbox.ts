/** Reading and writing one client's rows: `core/outbox.ts` says which there are. */

import { outdated } from "./core/errors.js";
import type { Rejected } from "./core/outbox.js";
import {
  FORMAT,
  type Found,
  type Meta,
  NO_TERMS,
  rows,
  type StoredChange,
  type StoredCommit,
  type Terms,
} from "./core/outbox.js";
import type { Confirmed } from "./core/replica.js";
import type { SessionCore } from "./core/session.js";
import type { Conflict } from "./core/wire.js";
import type { Store, Transaction } from "./kv/store.js";

type Mark = SessionCore["mark"];

/**
 * What the rows hold beyond `mark`, or null where that is nothing. Rejects with a `ReattachError`
 * (`outdated`) where a newer release has written them.
 */
export async function read(tx: Transaction, prefix: string, mark: Mark): Promise<Found | null> {
  const meta = (await tx.get(prefix + rows.meta)) as Meta | undefined;
  if ((meta?.format ?? 0) > FORMAT) throw outdated();
  if (!meta || meta.rev === mark?.rev) return null;
  const range = (from: string, to: string) => tx.range(prefix + from, prefix + to);

  const all = meta.generation !== mark?.generation || meta.client_id !== mark.client_id;
  const changes = await range(rows.change(all ? 0 : mark.next), rows.end("change/"));
  const have = mark?.have;
  const behind = have?.epoch !== meta.epoch || have.version < (meta.snapshot ?? 0);
  const snapshot =
    behind && meta.snapshot !== null ? ((await tx.get(prefix + rows.snapshot)) as Confirmed) : null;
  const from = snapshot?.version ?? have?.version ?? 0;
  const commits = await range(rows.commit(from + 1), rows.end("commit/"));
  const rejected = await range(rows.rejectedAll, rows.end(rows.rejectedAll));
  const conflicts = (await tx.get(prefix + rows.conflicts)) ?? [];
  const terms = (await tx.get(prefix + rows.terms)) ?? NO_TERMS;
  return {
    meta,
    all,
    changes: changes as StoredChange[],
    snapshot,
    commits: commits as StoredCommit[],
    rejected: rejected as Rejected[],
    conflicts: conflicts as Conflict[],
    terms: terms as Terms,
  };
}

/** One transaction of the core: what it finds is applied, what the core then has is written. */
export async function transact(
  store: Store,
  prefix: string,
  core: SessionCore,
  now: () => number,
): Promise<void> {
  await store.transaction("readwrite", async (tx) => {
    const found = await read(tx, prefix, core.mark);
    for (const { key, to, value } of core.take(found, now())) {
      if (to !== undefined) tx.deleteRange(prefix + key, prefix + to);
      else if (value === undefined) tx.delete(prefix + key);
      else tx.put(prefix + key, value);
    }
  });
}
