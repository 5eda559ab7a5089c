/**
 * Operations carried over what was done to their texts: by others, whose commits are read from their
 * patches, and by the server, where it merged a change of this client otherwise than was shown
 * (protocol, section 4, rules TX1 to TX6).
 */

import { idOf, isArray, isObject, type Json } from "./json.js";
import { applyLoosely } from "./ops.js";
import { applyStep } from "./patch.js";
import { format, parse, type Tokens } from "./pointer.js";
import { carry, type Edit, plain, points, spliced } from "./text.js";
import type { Operation, PatchOperation, SpliceOp } from "./wire.js";

/** What was done to texts, by their paths as operations name them. */
export type Texts = ReadonlyMap<string, readonly Edit[]>;

/**
 * What a patch makes of a state, and what it did to the texts at `paths`. Throws `OpError` where it
 * does not fit.
 */
export function read(
  state: Json,
  patch: readonly PatchOperation[],
  paths: Iterable<string>,
): { next: Json; texts: Texts } {
  const readers = [...paths].map((path) => new Reader(path));
  let next = state;
  for (const step of patch) {
    const before = next;
    next = applyStep(before, step);
    for (const reader of readers) reader.step(before, step, next);
  }
  const texts = new Map<string, readonly Edit[]>();
  for (const reader of readers) {
    const edits = reader.edits ?? difference(state, next, reader.tokens);
    if (edits.length > 0) texts.set(reader.path, edits);
  }
  return { next, texts };
}

/** What operations do to the texts at `paths`. */
export function done(state: Json, ops: readonly Operation[], paths: Iterable<string>): Texts {
  const texts = new Map<string, readonly Edit[]>();
  for (const path of paths) {
    const own = ops.filter((operation) => writes(operation, path));
    const edits = own.every(({ op }) => op === "splice")
      ? (own as readonly SpliceOp[]).flatMap((one) => spliced(one.index, one.delete, one.insert))
      : difference(state, applyLoosely(state, ops), parse(path));
    if (edits.length > 0) texts.set(path, edits);
  }
  return texts;
}

/** What lies between the texts of two states. */
export function compare(before: Json, after: Json, paths: Iterable<string>): Texts {
  const texts = new Map<string, readonly Edit[]>();
  for (const path of paths) {
    const edits = difference(before, after, parse(path));
    if (edits.length > 0) texts.set(path, edits);
  }
  return texts;
}

/** Operations carried over edits of a text, and these edits as they read after the operations. */
export function carried(
  ops: readonly Operation[],
  path: string,
  incoming: readonly Edit[],
): [readonly Operation[], readonly Edit[]] {
  let first = incoming;
  if (first.length === 0 || !ops.some((operation) => writes(operation, path))) return [ops, first];
  const list: Operation[] = [];
  let moved = false;
  for (const operation of ops) {
    if (operation.op === "splice" && operation.path === path) {
      const own = spliced(operation.index, operation.delete, operation.insert);
      const [after, then] = carry(first, own);
      first = after;
      if (same(own, then)) list.push(operation);
      else {
        list.push(...splices(path, then));
        moved = true;
      }
    } else {
      // A write of the whole text: what came before it is not there any more.
      if (writes(operation, path)) first = [];
      list.push(operation);
    }
  }
  return [moved ? Object.freeze(list) : ops, first];
}

function same(one: readonly Edit[], other: readonly Edit[]): boolean {
  return (
    one.length === other.length &&
    one.every(({ pos, len }, at) => pos === other[at]?.pos && len === other[at].len)
  );
}

/** The paths of the texts that operations edit. */
export function edited(ops: readonly Operation[]): string[] {
  const paths: string[] = [];
  for (const operation of ops) if (operation.op === "splice") paths.push(operation.path);
  return paths;
}

/** Whether an operation edits or replaces the text at a path. */
function writes(operation: Operation, path: string): boolean {
  return operation.op === "splice" ? operation.path === path : covers(operation, path);
}

/** Whether an operation writes the text at a path as a whole, there or above (TX6). */
export function covers(operation: Operation, path: string): boolean {
  if (operation.op !== "set" && operation.op !== "unset" && operation.op !== "insert") return false;
  const written =
    operation.op === "insert"
      ? operation.path + format([`#${idOf(operation.value) ?? ""}`])
      : operation.path;
  return within(path, written);
}

function within(path: string, above: string): boolean {
  return above === path || path.startsWith(`${above}/`);
}

function splices(path: string, list: readonly Edit[]): SpliceOp[] {
  return list.map(({ pos, str, len }) =>
    Object.freeze(
      str === undefined
        ? { op: "splice", path, index: pos, delete: len, insert: "" }
        : { op: "splice", path, index: pos, delete: 0, insert: str },
    ),
  );
}

/** Follows one text through a patch. */
class Reader {
  readonly tokens: Tokens;
  /** Null as soon as a step wrote the whole text. */
  edits: Edit[] | null = [];

  constructor(readonly path: string) {
    this.tokens = parse(path);
  }

  step(before: Json, step: PatchOperation, after: Json): void {
    if (!this.edits) return;
    switch (step.op) {
      case "str_ins":
        if (this.#is(before, step.path)) {
          this.edits.push({ pos: step.pos, str: step.str, len: points(step.str) });
        }
        return;
      case "str_del":
        if (this.#is(before, step.path)) this.edits.push({ pos: step.pos, len: step.len });
        return;
      case "add":
      case "replace":
        return this.#written(after, step.path);
      case "remove":
        return this.#written(before, step.path);
      case "move":
        // An element that moves within its list keeps its path.
        if (text(before, this.tokens) !== text(after, this.tokens)) this.edits = null;
    }
  }

  #is(state: Json, pointer: string): boolean {
    return locate(state, this.tokens).pointer === pointer;
  }

  #written(state: Json, pointer: string): void {
    const at = locate(state, this.tokens).pointer;
    if (at !== undefined && within(at, pointer)) this.edits = null;
  }
}

function difference(before: Json, after: Json, tokens: Tokens): Edit[] {
  return plain(text(before, tokens), text(after, tokens));
}

/** A text; what is no string, or not there, counts as the empty one. */
function text(state: Json, tokens: Tokens): string {
  const { value } = locate(state, tokens);
  return typeof value === "string" ? value : "";
}

/** What is at an operation's path, and that path as a patch would name it, by index. */
function locate(
  state: Json,
  tokens: Tokens,
): { value: Json | undefined; pointer: string | undefined } {
  let value: Json | undefined = state;
  const pointer: string[] = [];
  for (const token of tokens) {
    if (isArray(value)) {
      const index = value.findIndex((element) => `#${idOf(element)}` === token);
      if (index < 0) return { value: undefined, pointer: undefined };
      pointer.push(String(index));
      value = value[index];
    } else {
      pointer.push(token);
      value = isObject(value) && Object.hasOwn(value, token) ? value[token] : undefined;
    }
  }
  return { value, pointer: format(pointer) };
}
