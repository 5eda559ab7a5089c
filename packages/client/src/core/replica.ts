/**
 * What this device shows: the state that the server confirmed, and over it the changes that it has
 * not decided yet.
 *
 * A local change is applied to what is shown, a confirmed one that ended as expected alters nothing
 * that is shown: both cost what they touch. Only when another client's commit arrives are the
 * pending changes applied anew, once, when somebody looks.
 */

import { equal, freeze, idOf, isArray, type Json, type JsonObject } from "./json.js";
import { apply, applyLoosely, checkReach } from "./ops.js";
import { applyStep } from "./patch.js";
import { byIndex, child, format, parse } from "./pointer.js";
import { carry, type Edit, points } from "./text.js";
import type { Change, Commit, Operation, PatchOperation, Splice } from "./wire.js";

export interface Pending {
  /** Names the change on this device, whatever its number becomes. */
  readonly ref: string;
  /** `seq` is 0 until the change has a number. */
  change: Change;
  /** The operations as they read over the confirmed state of now; `change.ops` is never altered. */
  view: readonly Operation[];
  /** It is on the disk, or this device has none that works. */
  stored: boolean;
}

export interface Confirmed {
  readonly epoch: string | null;
  readonly version: number;
  readonly state: JsonObject;
}

export class Replica {
  confirmed: Confirmed | null = null;
  /** In their order: first those with numbers, which have no gaps, then those without. */
  pending: Pending[] = [];
  #shown: Json | undefined;

  /** The confirmed state with the pending changes over it. Undefined before there is one. */
  get shown(): JsonObject | undefined {
    if (this.#shown === undefined && this.confirmed) {
      this.#shown = this.pending.reduce<Json>(
        (state, { view }) => applyLoosely(state, view),
        this.confirmed.state,
      );
    }
    return this.#shown as JsonObject | undefined;
  }

  /** The next look applies the pending changes anew. */
  stale(): void {
    this.#shown = undefined;
  }

  reset(confirmed: Confirmed): void {
    this.confirmed = confirmed;
    this.stale();
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
    this.pending.push(pending);
    this.#shown = state;
  }

  /** Adds a change that another tab put before the changes of this one which have no number yet. */
  addBefore(pending: Pending): void {
    const mine = this.pending.findIndex(({ change }) => change.seq === 0);
    if (mine < 0) {
      this.pending.push(pending);
      if (this.#shown !== undefined) this.#shown = applyLoosely(this.#shown, pending.view);
      return;
    }
    const unnumbered = this.pending.slice(mine);
    for (const splice of pending.view) {
      if (splice.op === "splice") carryViews(unnumbered, splice.path, edits(splice));
    }
    for (const splice of pending.change.ops) {
      if (splice.op === "splice") carryOps(unnumbered, splice.path, edits(splice));
    }
    this.pending.splice(mine, 0, pending);
    this.stale();
  }

  remove(ref: string): Pending | undefined {
    const index = this.pending.findIndex((one) => one.ref === ref);
    if (index < 0) return undefined;
    const [removed] = this.pending.splice(index, 1);
    this.stale();
    return removed;
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
    const texts: [string, Edit][] = [];
    let next: Json = state;
    for (const step of commit.patch) {
      if (!own && (step.op === "str_ins" || step.op === "str_del")) {
        texts.push([addressed(next, step.path), edit(step)]);
      }
      next = applyStep(next, step);
    }
    freeze(commit.patch);
    this.confirmed = { epoch, version: commit.version, state: next as JsonObject };
    const unnumbered = elsewhere ? this.pending.filter(({ change }) => change.seq === 0) : [];
    for (const [path, one] of texts) {
      carryViews(this.pending, path, [one]);
      carryOps(unnumbered, path, [one]);
    }
    if (own && own === this.pending[0]) {
      this.pending.shift();
      if (this.#shown !== undefined && !equal(applyLoosely(state, own.view), next)) this.stale();
      return;
    }
    if (own) this.remove(own.ref);
    if (this.pending.length > 0) this.stale();
    else this.#shown = next;
  }
}

/** Carries what is shown of pending changes over edits of a text that came before them. */
function carryViews(pending: readonly Pending[], path: string, incoming: readonly Edit[]): void {
  let first = incoming;
  for (const one of pending) [one.view, first] = carried(one.view, path, first);
}

/**
 * Carries what is sent of changes without numbers over edits that this client made before them: a
 * position means the text with all of the client's earlier changes.
 */
function carryOps(unnumbered: readonly Pending[], path: string, incoming: readonly Edit[]): void {
  let first = incoming;
  for (const one of unnumbered) {
    const [ops, next] = carried(one.change.ops, path, first);
    if (ops !== one.change.ops) one.change = Object.freeze({ ...one.change, ops });
    first = next;
  }
}

/** Operations carried over edits of a text, and these edits as they read after the operations. */
function carried(
  ops: readonly Operation[],
  path: string,
  incoming: readonly Edit[],
): [readonly Operation[], readonly Edit[]] {
  let first = incoming;
  if (first.length === 0 || !ops.some((operation) => touches(operation, path))) return [ops, first];
  const list: Operation[] = [];
  for (const operation of ops) {
    if (operation.op === "splice" && operation.path === path) {
      const [after, then] = carry(first, edits(operation));
      first = after;
      list.push(...splices(path, then));
    } else {
      // A write of the whole text: what came before it is not there any more.
      if (touches(operation, path)) first = [];
      list.push(operation);
    }
  }
  return [Object.freeze(list), first];
}

/** Whether an operation edits or replaces the text at a path. */
function touches(operation: Operation, path: string): boolean {
  if (operation.op === "splice") return operation.path === path;
  if (operation.op !== "set" && operation.op !== "unset" && operation.op !== "insert") return false;
  const written =
    operation.op === "insert"
      ? operation.path + format([`#${idOf(operation.value) ?? ""}`])
      : operation.path;
  return written === path || path.startsWith(`${written}/`);
}

function edit(step: PatchOperation & { op: "str_ins" | "str_del" }): Edit {
  return step.op === "str_ins"
    ? { pos: step.pos, str: step.str, len: points(step.str) }
    : { pos: step.pos, len: step.len };
}

function edits({ index, delete: len, insert }: Splice): Edit[] {
  const removed: Edit[] = len > 0 ? [{ pos: index, len }] : [];
  return insert === "" ? removed : [...removed, { pos: index, str: insert, len: points(insert) }];
}

function splices(path: string, list: readonly Edit[]): Splice[] {
  return list.map(({ pos, str, len }) =>
    Object.freeze(
      str === undefined
        ? { op: "splice", path, index: pos, delete: len, insert: "" }
        : { op: "splice", path, index: pos, delete: 0, insert: str },
    ),
  );
}

/** A patch's path, by index, as an operation would name it, by id. */
function addressed(state: Json, pointer: string): string {
  let node: Json | undefined = state;
  return format(
    parse(pointer).map((token) => {
      const within = node;
      node = child(node, token, byIndex, pointer);
      return isArray(within) ? `#${idOf(node) ?? ""}` : token;
    }),
  );
}
