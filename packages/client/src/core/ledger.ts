/**
 * One client's books: its name and numbers, what is pending, refused and in conflict, and how all of
 * that goes to the device's store and comes back from it (protocol, "The outbox").
 *
 * A transaction begins with `take`, which applies what other tabs wrote since the last one, gives
 * out numbers, and answers what is to be written; it ends with `wrote` or `failed`.
 */

import type { Effect } from "./effects.js";
import { equal, freeze } from "./json.js";
import {
  FORMAT,
  type Found,
  type Meta,
  NO_TERMS,
  type Rejected,
  rows,
  type StoredChange,
  type StoredCommit,
  type Terms,
  type Write,
} from "./outbox.js";
import { type Confirmed, type Pending, Replica } from "./replica.js";
import type { Commit, Conflict, Operation } from "./wire.js";

/** A snapshot is written anew when the commits after it weigh more, and at least this much. */
const SNAPSHOT_FLOOR = 16_384;

/** The `ref` of an empty change that takes the number of a bad one begins with this. */
const NOTHING = "nothing-";

/** Why a change that this tab has left to the others is not waited for any more. */
const HANDED_OVER = {
  code: "handed_over",
  message: "other tabs send this change, and this one cannot hear of it: its storage failed",
};

/** What the store does not hold yet. */
interface Dirty {
  all: boolean;
  meta: boolean;
  snapshot: boolean;
  conflicts: boolean;
  terms: boolean;
  /** Characters of JSON in `commits`. */
  weight: number;
  commits: StoredCommit[];
  drops: Pending[];
  puts: Set<Pending>;
  rejected: Map<string, Rejected | null>;
}

export class Ledger {
  readonly replica = new Replica();
  rejected: ReadonlyMap<string, Rejected> = new Map();
  readonly conflicts = new Map<string, Conflict>();
  terms: Terms = NO_TERMS;

  clientId = "";
  /** The highest number whose decision is known, and its change's `at` where that is known too. */
  decided = 0;
  #decidedAt: number | null = null;
  #next = 1;
  #lastAt = 0;

  disk: "works" | "fails" | "none" = "none";
  diskError = "";
  /**
   * This tab's confirmed state came over the line: what the store has cannot be newer.
   */
  heard = false;
  /** `new`: another tab's identity comes before this one; `renumbered`: this one replaces it. */
  #identity: "new" | "stored" | "renumbered" = "new";
  #meta: Meta | null = null;
  #dirty = clean();
  #writing: {
    readonly meta: Meta;
    readonly puts: readonly Pending[];
    readonly confirmed: Confirmed | null;
  } | null = null;
  /** What the newest transaction of this tab left as confirmed. */
  #written: Confirmed | null = null;

  readonly #newId: () => string;
  readonly #emit: (effect: Effect) => void;

  constructor(newId: () => string, emit: (effect: Effect) => void) {
    this.#newId = newId;
    this.#emit = emit;
  }

  /** What the store's reader already knows; null: nothing. */
  get mark(): (Meta & { readonly have: Confirmed | null }) | null {
    return this.#meta && { ...this.#meta, have: this.replica.confirmed };
  }

  /** The name is on the disk, so that it may be used; or no disk would take it. */
  get named(): boolean {
    return this.#identity === "stored" || this.disk === "fails";
  }

  /** Every change is on the disk. Changes get there in their order. */
  get kept(): boolean {
    return this.disk === "works" && this.replica.pending.at(-1)?.stored !== false;
  }

  // ── The store ──────────────────────────────────────────────────────────────────────────────────

  load(found: Found | null, durable: boolean, error = ""): void {
    if (durable) this.disk = "works";
    else this.diskError = error;
    this.clientId = this.#newId();
    this.#dirty.all = true;
    if (found) this.#absorb(found);
  }

  /** Asks for a transaction, soon. */
  save(): void {
    // While the disk fails, its timer says when it is tried again.
    if (this.disk === "fails") this.#number();
    else this.#emit({ type: "store" });
  }

  /** Answers what to write, and whether a number was found to be used twice. */
  take(found: Found | null): { writes: Write[]; collided: boolean } {
    const collided = found !== null && this.#absorb(found);
    this.#number();
    const dirty = this.#dirty;
    const { moved } = this.replica;
    // Of what the line brings, only who has it writes what it does to the others.
    if (this.heard && moved.size > 0) {
      for (const one of this.replica.pending) if (moved.has(one)) dirty.puts.add(one);
    }
    moved.clear();
    if (isClean(dirty)) {
      this.#writing = null;
      return { writes: [], collided };
    }
    this.#dirty = clean();
    const { pending, confirmed } = this.replica;
    const before = this.#meta;
    const writes: Write[] = [];

    const tail = (before?.tail ?? 0) + dirty.weight;
    const whole =
      confirmed !== null &&
      (dirty.all || dirty.snapshot || tail > Math.max(before?.weight ?? 0, SNAPSHOT_FLOOR));
    if (whole) {
      writes.push({ key: "commit/", to: rows.end("commit/") });
      writes.push({ key: rows.snapshot, value: confirmed });
    } else {
      for (const commit of dirty.commits) {
        writes.push({ key: rows.commit(commit.version), value: commit });
      }
    }
    const puts = dirty.all ? [...pending] : [...dirty.puts];
    if (dirty.all) {
      writes.push({ key: "change/", to: rows.end("change/") });
      writes.push({ key: rows.rejectedAll, to: rows.end(rows.rejectedAll) });
    }
    for (const { change } of dirty.drops) writes.push({ key: rows.change(change.seq) });
    for (const { ref, change, view, unsure } of puts) {
      const value: StoredChange = {
        ref,
        change,
        ...(view !== change.ops && { view }),
        ...(unsure && { unsure }),
      };
      writes.push({ key: rows.change(change.seq), value });
    }
    for (const [ref, rejected] of dirty.all ? this.rejected : dirty.rejected) {
      writes.push({ key: rows.rejected(ref), value: rejected ?? undefined });
    }
    if (dirty.conflicts || dirty.all) {
      writes.push({ key: rows.conflicts, value: [...this.conflicts.values()] });
    }
    if (dirty.terms || dirty.all) writes.push({ key: rows.terms, value: this.terms });
    const meta: Meta = {
      format: FORMAT,
      rev: (before?.rev ?? 0) + 1,
      generation: (before?.generation ?? 0) + (dirty.all ? 1 : 0),
      client_id: this.clientId,
      next: this.#next,
      at: this.#lastAt,
      decided: this.decided,
      decided_at: this.#decidedAt,
      epoch: confirmed?.epoch ?? null,
      version: confirmed?.version ?? null,
      snapshot: whole ? confirmed.version : (before?.snapshot ?? null),
      weight: whole ? JSON.stringify(confirmed.state).length : (before?.weight ?? 0),
      tail: whole ? 0 : tail,
    };
    writes.push({ key: rows.meta, value: meta });
    this.#writing = { meta, puts, confirmed };
    return { writes, collided };
  }

  /** The transaction is complete: only now is a change called saved. */
  wrote(): void {
    const written = this.#writing;
    this.#writing = null;
    if (!written) return;
    this.#meta = written.meta;
    this.#written = written.confirmed;
    if (written.meta.client_id === this.clientId) this.#identity = "stored";
    if (this.disk === "fails") {
      this.disk = "works";
      this.diskError = "";
    }
    for (const pending of written.puts) {
      if (pending.stored) continue;
      pending.stored = true;
      this.#emit({ type: "kept", ref: pending.ref, durable: this.disk === "works" });
    }
    this.#emit({ type: "poke" });
  }

  /** The transaction had no effect. The next one writes everything anew. */
  failed(message: string): void {
    this.#writing = null;
    this.#dirty.all = true;
    this.diskError = message;
  }

  /** Goes on without the disk: numbers are given out in memory, and nothing is called saved. */
  goWithout(): void {
    if (this.disk === "works") this.#emit({ type: "poke", alone: true });
    this.disk = "fails";
    this.#number();
    for (const { ref, stored } of this.replica.pending) {
      if (!stored) this.#emit({ type: "kept", ref, durable: false });
    }
  }

  /** Leaves the shared store to the other tabs, with all that it holds. */
  detach(): void {
    this.disk = "none";
    this.#meta = null;
    for (const { ref, stored } of this.replica.pending) {
      if (stored) this.#emit({ type: "decided", ref, error: HANDED_OVER });
    }
    this.renumber((pending) => !pending.stored);
  }

  /** Applies what other tabs wrote; answers whether a number was given out twice. */
  #absorb(found: Found): boolean {
    const { replica } = this;
    const { meta } = found;
    const replacing = this.#identity === "renumbered";
    const before = this.#meta;
    this.#meta = meta;

    if (!this.heard) this.#catchUp(found);
    const refused = new Map(found.rejected.map((one) => [one.ref, one]));
    for (const [ref, one] of this.#dirty.rejected) {
      if (one) refused.set(ref, one);
      else refused.delete(ref);
    }
    this.rejected = refused;

    // What is stored and not to be found any more was decided.
    const still = new Set(found.changes.map(({ ref }) => ref));
    for (const { ref, change, stored } of [...replica.pending]) {
      if (!stored || still.has(ref) || replacing) continue;
      if (!found.all && change.seq > meta.decided) continue;
      const error = refused.get(ref);
      if (error) replica.withdraw(ref);
      else replica.remove(ref);
      this.#emit(error ? { type: "decided", ref, error } : { type: "decided", ref });
    }
    const known = new Map(replica.pending.map((pending) => [pending.ref, pending]));
    const numbers = new Set(replica.pending.map(({ change }) => change.seq));
    let collided = false;
    const brought = this.#brought(found.changes.filter(({ ref }) => !known.has(ref)));
    for (const { ref, change, view, unsure } of found.changes) {
      const here = known.get(ref);
      freeze(change);
      freeze(view);
      if (!here) {
        // Numbers of a name that this client replaces: it gets another.
        const own = replacing ? { ...change, seq: 0 } : change;
        collided ||= own.seq > 0 && numbers.has(own.seq);
        numbers.add(own.seq);
        const stored = view ?? own.ops;
        const now = brought.get(ref) ?? stored;
        const pending: Pending = { ref, change: own, view: now, stored: !replacing, unsure };
        replica.addBefore(pending);
        if (now !== stored) replica.moved.set(pending, stored);
      } else if (!replacing) {
        here.change = change;
        here.unsure = unsure;
        here.stored = true;
      }
    }
    if (replacing) return false;
    if (found.all) {
      const order = ({ change }: Pending) => change.seq || Number.POSITIVE_INFINITY;
      replica.pending.sort((a, b) => (order(a) < order(b) ? -1 : order(a) > order(b) ? 1 : 0));
    }
    if (this.#identity === "new") this.#dirty.all = false;
    const same = this.#identity === "stored" && before?.client_id === meta.client_id;
    this.#identity = "stored";
    this.clientId = meta.client_id;
    this.#next = Math.max(meta.next, same ? this.#next : 0);
    this.#lastAt = Math.max(meta.at, this.#lastAt);
    if (!same || meta.decided > this.decided) {
      this.decided = meta.decided;
      this.#decidedAt = meta.decided_at;
    }
    return collided;
  }

  /**
   * How changes of other tabs read over what the line has brought since this tab's last transaction:
   * their rows tell how they read before that.
   */
  #brought(changes: readonly StoredChange[]): ReadonlyMap<string, readonly Operation[]> {
    const { replica } = this;
    const { commits, drops, snapshot } = this.#dirty;
    if (!this.heard || !this.#written || changes.length === 0) return new Map();
    if (!snapshot && commits.length === 0) return new Map();
    const then = new Replica();
    then.reset(this.#written);
    for (const one of [...drops, ...replica.pending]) {
      const view = replica.moved.get(one) ?? one.view;
      if (one.change.seq > 0) then.addBefore({ ...one, view });
    }
    for (const { ref, change, view = change.ops } of changes) {
      then.addBefore({ ref, change, view, stored: true });
    }
    for (const commit of snapshot ? [] : commits) {
      then.commit(
        commit,
        then.pending.find(({ ref }) => ref === commit.ref),
      );
    }
    if (snapshot && replica.confirmed) then.reset(replica.confirmed, this.decided);
    return new Map(then.pending.map(({ ref, view }) => [ref, view]));
  }

  /** Moves the confirmed state to what the leading tab wrote. */
  #catchUp({ meta, snapshot, commits, conflicts, terms }: Found): void {
    const { replica } = this;
    const have = replica.confirmed;
    if (snapshot && !(have?.epoch === snapshot.epoch && have.version >= snapshot.version)) {
      replica.reset(freeze(snapshot), meta.client_id === this.clientId ? meta.decided : 0);
    }
    for (const commit of commits) {
      if (commit.version !== (replica.confirmed?.version ?? -1) + 1) continue;
      const { ref } = commit;
      const own = ref === undefined ? undefined : replica.pending.find((one) => one.ref === ref);
      replica.commit(freeze(commit), own, commit.ref !== undefined);
      if (own) this.#emit({ type: "decided", ref: own.ref });
    }
    this.conflicts.clear();
    for (const conflict of conflicts) this.conflicts.set(conflict.id, conflict);
    if (!sameTerms(terms, this.terms)) this.terms = freeze(terms);
  }

  // ── Names and numbers ──────────────────────────────────────────────────────────────────────────

  #number(): void {
    const { pending } = this.replica;
    let first = pending.length;
    while (first > 0 && pending[first - 1]?.change.seq === 0) first--;
    for (const one of pending.slice(first)) {
      this.#lastAt = Math.max(this.#lastAt, one.change.at);
      const change = this.replica.current(one);
      one.change = Object.freeze({ ...change, seq: this.#next++, at: this.#lastAt });
      one.overtaken = false;
      this.#dirty.puts.add(one);
    }
  }

  /** Takes a new name, and numbers from 1 what is to be sent under it. */
  renumber(keep: (pending: Pending) => boolean = () => true): void {
    const { replica } = this;
    for (const pending of [...replica.pending]) if (!keep(pending)) replica.withdraw(pending.ref);
    replica.renew(replica.pending);
    for (const pending of replica.pending) {
      pending.overtaken = false;
      pending.change = { ...pending.change, seq: 0 };
      pending.stored = false;
    }
    this.clientId = this.#newId();
    this.#identity = "renumbered";
    this.#next = 1;
    // Under the new name, too, each was made when it was made.
    this.#lastAt = 0;
    this.decided = 0;
    this.#decidedAt = null;
    this.#dirty.all = true;
    this.#number();
  }

  /** Whether the server's last decided number is one that this client knows. */
  agrees(seq: number, at: number | null): boolean {
    if (seq < this.decided) return false;
    const known = seq === this.decided ? this.#decidedAt : this.bySeq(seq)?.change.at;
    if (known === undefined) return false;
    return at === null || known === null || known === at;
  }

  /** Makes changes that were made behind a guess what they read as, when that can be told. */
  surely(): void {
    const late = this.replica.surely();
    if (late.length === 0) return;
    for (const pending of late) pending.stored = false;
    // Other tabs know them as they were.
    this.#dirty.all = true;
    this.save();
  }

  bySeq(seq: number): Pending | undefined {
    const { pending } = this.replica;
    const guess = pending[seq - (pending[0]?.change.seq ?? 0)];
    return guess?.change.seq === seq ? guess : pending.find(({ change }) => change.seq === seq);
  }

  /** Gives changes that were made before the session had an epoch the one that it has. */
  adopt(epoch: string): void {
    for (const pending of this.replica.pending) {
      if (pending.change.epoch !== null) return;
      pending.change = Object.freeze({ ...pending.change, epoch });
      pending.stored = false;
      this.#dirty.all = true;
    }
  }

  // ── What the server said ───────────────────────────────────────────────────────────────────────

  reset(confirmed: Confirmed, decided = 0): void {
    this.replica.reset(confirmed, decided);
    for (const one of this.replica.pending) {
      if (one.unsure && one.change.seq > 0) this.#dirty.puts.add(one);
    }
    this.#dirty.snapshot = true;
  }

  /** Throws `OpError`, and alters nothing, where the patch does not fit. */
  commit({ version, patch }: Commit, own: Pending | undefined): void {
    this.replica.commit({ version, patch }, own);
    this.#dirty.commits.push({ version, patch, ...(own ? { ref: own.ref } : {}) });
    this.#dirty.weight += JSON.stringify(patch).length;
    if (own) this.#settle(own);
  }

  /** A number is decided; `at` is its change's, where it is known. */
  decide(seq: number, at: number | null = null): void {
    if (seq < this.decided || (seq === this.decided && at === null)) return;
    this.decided = seq;
    this.#decidedAt = at;
    this.#dirty.meta = true;
  }

  /** The change is in the confirmed state. */
  accept(pending: Pending): void {
    this.replica.remove(pending.ref);
    this.#settle(pending);
  }

  #settle(pending: Pending): void {
    const { ref, change } = pending;
    this.#dirty.drops.push(pending);
    this.decide(change.seq, change.at);
    this.#emit({ type: "decided", ref });
  }

  /** The change was refused: it is kept for the application to deal with. */
  refuse(pending: Pending, code: string, message: string, path?: string | null): void {
    const { ref, change } = pending;
    this.replica.withdraw(ref);
    this.#dirty.drops.push(pending);
    // What took the number of a bad one is nobody's change.
    if (!ref.startsWith(NOTHING)) {
      this.setRejected(ref, freeze({ ref, change, code, message, ...(path ? { path } : {}) }));
    }
    this.#emit({ type: "decided", ref, error: { code, message } });
    this.#emit({
      type: "event",
      event: { type: "changeRejected", detail: { ref, code, message } },
    });
  }

  /** Refuses the first change without the server's word, and sends nothing under its number. */
  replaceByNothing(first: Pending, code: string, message: string): void {
    this.refuse(first, code, message);
    this.replica.pending.unshift({
      ref: `${NOTHING}${this.#newId()}`,
      change: Object.freeze({ ...first.change, ops: Object.freeze([]) }),
      view: [],
      stored: false,
    });
    this.#dirty.all = true;
  }

  setRejected(ref: string, rejected: Rejected | null): void {
    const next = new Map(this.rejected);
    if (rejected) next.set(ref, rejected);
    else next.delete(ref);
    this.rejected = next;
    this.#dirty.rejected.set(ref, rejected);
  }

  /** Conflicts made or settled by a commit. */
  mergeConflicts(conflicts: readonly Conflict[]): void {
    for (const conflict of freeze(conflicts)) {
      this.#dirty.conflicts = true;
      if (conflict.status === "resolved") {
        this.conflicts.delete(conflict.id);
      } else {
        this.conflicts.set(conflict.id, conflict);
        this.#emit({ type: "event", event: { type: "conflictDetected", detail: conflict } });
      }
    }
  }

  /** A welcome names all that are open; `all`: of others, nothing is known any more. */
  setConflicts(open: readonly Conflict[], all: boolean): void {
    const now = new Set(open.map(({ id }) => id));
    for (const { id, status } of [...this.conflicts.values()]) {
      if (!now.has(id) && (all || status === "open")) this.conflicts.delete(id);
    }
    for (const conflict of freeze(open)) this.conflicts.set(conflict.id, conflict);
    this.#dirty.conflicts = true;
  }

  /** What a welcome says of the schema. */
  setTerms(terms: Terms): void {
    if (sameTerms(terms, this.terms)) return;
    this.terms = freeze(terms);
    this.#dirty.terms = true;
  }
}

function sameTerms(one: Terms, other: Terms): boolean {
  return equal(one.policies, other.policies) && equal({ ...one.schema }, { ...other.schema });
}

function clean(): Dirty {
  return {
    all: false,
    meta: false,
    snapshot: false,
    conflicts: false,
    terms: false,
    weight: 0,
    commits: [],
    drops: [],
    puts: new Set(),
    rejected: new Map(),
  };
}

function isClean(dirty: Dirty): boolean {
  const { all, meta, snapshot, conflicts, terms, commits, drops, puts, rejected } = dirty;
  const rows = commits.length + drops.length + puts.size + rejected.size;
  return !(all || meta || snapshot || conflicts || terms || rows > 0);
}
