/**
 * What this device shows: the state that the server confirmed, and over it the changes that it has
 * not decided yet.
 *
 * A local change is applied to what is shown, a confirmed one that ended as expected alters nothing
 * that is shown: both cost what they touch. Only when another client's commit arrives are the
 * pending changes applied anew, once, when somebody looks.
 */

import { carried, compare, covers, done, edited, read, type Texts } from "./carrying.js";
import { equal, freeze, type Json, type JsonObject } from "./json.js";
import { apply, applyInTurn, applyLoosely, checkReach } from "./ops.js";
import { type Edit, joined } from "./text.js";
import type { Change, Commit, Operation } from "./wire.js";

export interface Pending {
  /** Names the change on this device, whatever its number becomes. */
  readonly ref: string;
  /** `seq` is 0 until the change has a number. */
  change: Change;
  /** The operations as they read over the confirmed state of now; `change.ops` is never altered. */
  view: readonly Operation[];
  /** It is on the disk, or this device has none that works. */
  stored: boolean;
  /** Another tab's change came before it that its user had not seen. */
  overtaken?: boolean;
  /**
   * `view`: how it reads is a guess, since commits were missed, or a change before it was refused;
   * what is sent is right. `change`: it was made behind such a guess, and is sent, as it reads then,
   * when nothing of that is undecided any more.
   */
  unsure?: Unsure | undefined;
}

export type Unsure = "view" | "change";

export interface Confirmed {
  readonly epoch: string | null;
  readonly version: number;
  readonly state: JsonObject;
}

export class Replica {
  confirmed: Confirmed | null = null;
  readonly #pending: Pending[] = [];
  /** What others did to texts that no pending change has been carried over yet. */
  readonly #ahead = new Map<string, Edit[]>();
  /** Those whose `view` became another one, and what it was before. */
  readonly moved = new Map<Pending, readonly Operation[]>();
  #shown: Json | undefined;
  /** The paths of the texts that pending changes edit; of some, they are decided by now. */
  readonly #texts = new Set<string>();
  /** Some pending change is unsure. */
  #doubts = false;

  /** In their order: first those with numbers, which have no gaps, then those without. */
  get pending(): Pending[] {
    if (this.#ahead.size > 0) {
      this.#carry(this.#pending, this.#ahead);
      this.#ahead.clear();
    }
    return this.#pending;
  }

  /** The confirmed state with the pending changes over it. Undefined before there is one. */
  get shown(): JsonObject | undefined {
    if (this.#shown === undefined && this.confirmed) {
      this.#shown = over(this.confirmed.state, this.pending);
    }
    return this.#shown as JsonObject | undefined;
  }

  /**
   * Takes another confirmed state, whose commits are not known. This client's numbers up to
   * `decided` are in it.
   */
  reset(confirmed: Confirmed, decided = 0): void {
    const open = this.pending.findIndex(({ change }) => change.seq === 0 || change.seq > decided);
    if (this.confirmed && open >= 0) {
      const before = over(this.confirmed.state, this.pending.slice(0, open));
      this.#guess(this.pending.slice(open), compare(before, confirmed.state, this.#texts));
    }
    this.confirmed = confirmed;
    this.#shown = undefined;
  }

  /** Adds a change of this tab. Throws `OpError`, and alters nothing, where it makes no sense. */
  add(pending: Pending): void {
    const { shown } = this;
    if (shown === undefined) throw new Error("expected a state before the first change");
    let state: Json = shown;
    for (const operation of pending.view) {
      checkReach(state, operation);
      state = apply(state, operation);
    }
    if (this.#doubts && edited(pending.view).length > 0) pending.unsure = "change";
    this.#push(pending, this.pending.length);
    this.#shown = state;
  }

  /** Adds a change that another tab put before the changes of this one which have no number yet. */
  addBefore(pending: Pending): void {
    // Looked at from the end: a device that comes back has read thousands, all with numbers.
    if (this.pending.at(-1)?.change.seq !== 0) {
      this.#push(pending, this.pending.length);
      if (this.#shown !== undefined) this.#shown = applyLoosely(this.#shown, pending.view);
      return;
    }
    const mine = this.pending.findIndex(({ change }) => change.seq === 0);
    if (this.confirmed) {
      const before = over(this.confirmed.state, this.pending.slice(0, mine));
      const texts = done(before, pending.view, this.#texts);
      this.#carry(this.pending.slice(mine), texts);
    }
    this.#push(pending, mine);
    this.#overtake(mine + 1);
    this.#shown = undefined;
  }

  /** Takes out a change that the confirmed state has, or will have. */
  remove(ref: string): Pending | undefined {
    const index = this.pending.findIndex((one) => one.ref === ref);
    if (index < 0) return undefined;
    const [removed] = this.pending.splice(index, 1);
    this.#shown = undefined;
    return removed;
  }

  /** Takes out a change that came to nothing here: those behind it have shown its texts. */
  withdraw(ref: string): void {
    const index = this.pending.findIndex((one) => one.ref === ref);
    const one = this.pending[index];
    if (!one) return;
    if (this.confirmed && this.pending.length > index + 1) {
      const before = over(this.confirmed.state, this.pending.slice(0, index));
      const texts = compare(applyLoosely(before, one.view), before, this.#texts);
      // The server knows nothing of what was refused, nor what was made behind it.
      if (texts.size > 0) this.#guess(this.pending.slice(index + 1), texts);
    }
    this.remove(ref);
  }

  /**
   * Moves the confirmed state to the next version. `own`: the pending change that this is a commit
   * of; `elsewhere`: it is one of this client that another tab made. Throws `OpError`, and alters
   * nothing, where the patch does not fit.
   */
  commit(
    commit: Pick<Commit, "version" | "patch">,
    own: Pending | undefined,
    elsewhere = false,
  ): void {
    if (!this.confirmed) throw new Error("expected a confirmed state before a commit");
    const { state, epoch } = this.confirmed;
    if (this.#pending.length === 0) this.#texts.clear();
    const { next, texts } = read(state, commit.patch, own ? [] : this.#texts);
    freeze(commit.patch);
    this.confirmed = { epoch, version: commit.version, state: next as JsonObject };
    if (!own) {
      if (elsewhere) this.#overtake(0);
      // Those of many commits in a row are carried over at once.
      for (const [path, edits] of texts) {
        this.#ahead.set(path, joined([...(this.#ahead.get(path) ?? []), ...edits]));
      }
      this.#shown = this.#pending.length > 0 ? undefined : next;
      return;
    }
    const index = this.pending.indexOf(own);
    const expected = applyLoosely(state, own.view);
    const asShown = equal(expected, next);
    if (!asShown) {
      // What is typed behind it means the text that this client showed.
      this.#carry(this.pending.slice(index + 1), compare(expected, next, this.#texts));
    }
    if (index === 0) this.pending.shift();
    else this.pending.splice(index, 1);
    if (index > 0 || !asShown) this.#shown = undefined;
  }

  /** A change as it is to be numbered: where that is possible, as it reads over what is known now. */
  current({ change, view, overtaken }: Pending): Change {
    const { confirmed } = this;
    if (!overtaken || !confirmed) return change;
    const { epoch, version: base } = confirmed;
    // Splices mean the same over any version; other operations tell by it what their user had seen.
    const movable = view.every(({ op }) => op === "splice");
    const same = change.base === base && change.epoch === epoch;
    return movable || same ? { ...change, epoch, base, ops: view } : change;
  }

  /**
   * The changes that were made behind a guess, as soon as nothing of that is undecided: from now on
   * they are what they read as. Empty until then, and where there are none.
   */
  surely(): readonly Pending[] {
    if (!this.#doubts || this.pending.some(({ unsure }) => unsure === "view")) return [];
    const late = this.pending.slice(this.pending.findIndex(({ unsure }) => unsure !== undefined));
    this.renew(late);
    return late;
  }

  /**
   * Makes unsent changes what they read as over what is known now, where that is possible.
   *
   * Splices mean the same over any version. Other operations tell by `base` what their user had seen;
   * what they stand for stays as it was, and so do splices that a change edits on which stays, for its
   * user had seen no more than them. A splice that is covered by a later write of the whole text goes:
   * the later one has it in it, or did away with it. How what stays reads is a guess.
   */
  renew(changes: readonly Pending[]): void {
    if (!this.confirmed) return;
    const { epoch, version: base } = this.confirmed;
    const all = new Set(changes.flatMap(textsOf));
    const held = new Set<string>();
    const later: Operation[] = [];
    for (const one of [...changes].reverse()) {
      const { change, view } = one;
      const paths = textsOf(one);
      const same = change.epoch === epoch && change.base === base;
      const splices = paths.length > 0 && view.every(({ op }) => op === "splice");
      if (same || (splices && !paths.some((path) => held.has(path)))) {
        if (!same) one.view = uncovered(view, later);
        one.change = Object.freeze({ ...change, epoch, base, ops: one.view });
        continue;
      }
      for (const path of paths) held.add(path);
      if (view.some(({ op }) => op === "test")) {
        // It may be refused: then what came before it is all that there is.
        for (const path of all) if (view.some((one) => covers(one, path))) held.add(path);
      } else later.push(...view);
    }
    this.#doubt(changes);
  }

  /** Marks what could not be renewed, and what is behind that. */
  #doubt(changes: readonly Pending[]): void {
    this.#doubts = false;
    for (const one of changes) {
      const { epoch, base } = one.change;
      const renewed = epoch === this.confirmed?.epoch && base === this.confirmed.version;
      one.unsure = undefined;
      if (textsOf(one).length === 0) continue;
      if (this.#doubts) one.unsure = "change";
      else if (!renewed) one.unsure = "view";
      this.#doubts ||= one.unsure === "view";
    }
  }

  #push(pending: Pending, at: number): void {
    if (this.pending.length === 0) this.#texts.clear();
    this.#doubts ||= pending.unsure !== undefined;
    for (const path of edited(pending.view)) this.#texts.add(path);
    this.pending.splice(at, 0, pending);
  }

  /** Carries pending changes over what was done to their texts before them. */
  #carry(pending: readonly Pending[], texts: Texts): void {
    for (const [path, edits] of texts) {
      let first = edits;
      for (const one of pending) {
        const [view, next] = carried(one.view, path, first);
        if (view !== one.view && !this.moved.has(one)) this.moved.set(one, one.view);
        one.view = view;
        first = next;
      }
    }
  }

  /** Carries changes as well as can be told here, and marks them for that. */
  #guess(pending: readonly Pending[], texts: Texts): void {
    this.#carry(pending, texts);
    for (const one of pending) {
      if (textsOf(one).length === 0) continue;
      one.unsure ??= "view";
      this.#doubts = true;
    }
  }

  #overtake(from: number): void {
    for (const one of this.pending.slice(from)) if (one.change.seq === 0) one.overtaken = true;
  }
}

/** The paths of the texts that a change edits: here, or where the server carries it. */
function textsOf({ view, change }: Pending): string[] {
  return [...edited(view), ...edited(change.ops)];
}

/** Splices without those of texts that later operations write as a whole. */
function uncovered(
  splices: readonly Operation[],
  later: readonly Operation[],
): readonly Operation[] {
  return Object.freeze(
    splices.filter((one) => one.op !== "splice" || !later.some((two) => covers(two, one.path))),
  );
}

function over(state: Json, pending: readonly Pending[]): Json {
  return applyInTurn(
    state,
    pending.map(({ view }) => view),
  );
}
