/**
 * The operations of section 3, applied to a state as its author expects them to end. What a merge
 * makes of them is the server's to say; until then this is what the user sees.
 */

import { OpError } from "./errors.js";
import {
  clone,
  DEEPEST,
  equal,
  idOf,
  isArray,
  isObject,
  type Json,
  type JsonArray,
  kindOf,
} from "./json.js";
import { byId, editParent, get, parse, put, type Tokens, without } from "./pointer.js";
import { points, splice, spliceAll } from "./text.js";
import type { Operation, SpliceOp } from "./wire.js";

/** The state after an operation. Throws `OpError` where it makes no sense. */
export function apply(state: Json, operation: Operation): Json {
  switch (operation.op) {
    case "set":
      return set(state, operation.path, operation.value);
    case "unset":
      return unset(state, operation.path);
    case "insert":
      return change(state, operation.path, (list) => insert(list, operation));
    case "move": {
      const tokens = parse(operation.path);
      const list = get(state, tokens.slice(0, -1));
      if (!isArray(list)) return mustBe("an element of a list", list, operation.path);
      const index = byId(list, tokens.at(-1) ?? "", operation.path);
      const moved = list[index];
      if (moved === undefined || operation.after === idOf(moved)) return state;
      const others = list.filter((_, at) => at !== index);
      return replace(
        state,
        tokens.slice(0, -1),
        placed(others, moved, operation.after),
        operation.path,
      );
    }
    case "inc":
      return change(state, operation.path, (value = 0) => {
        if (typeof value !== "number") return mustBe("a number", value, operation.path);
        return clone(value + operation.by, operation.path);
      });
    case "splice":
      return change(state, operation.path, (value = "", parent) => {
        if (typeof value !== "string" || isArray(parent)) {
          return mustBe("a string", isArray(parent) ? parent : value, operation.path);
        }
        return splice(value, operation.index, operation.delete, operation.insert);
      });
    case "test":
      if (equal(get(state, parse(operation.path)), operation.value)) return state;
      throw new OpError("test_failed", "expected another value", operation.path);
    case "restore":
    case "resolve":
    case "end":
      // Only the server knows what these make of the state.
      return state;
    default:
      throw new OpError(
        "bad_op",
        `expected an operation, got ${String((operation as Operation).op)}`,
      );
  }
}

/** The state after all of a change's operations; throws at the first that makes no sense. */
export function applyAll(state: Json, ops: readonly Operation[]): Json {
  return ops.reduce(apply, state);
}

/**
 * The state after what still makes sense of a pending change: others may have removed what it
 * writes to. With a `test` in it, it takes effect whole or not at all.
 */
export function applyLoosely(state: Json, ops: readonly Operation[]): Json {
  const whole = ops.some(({ op }) => op === "test");
  let shown = state;
  for (const operation of ops) {
    try {
      shown = apply(shown, operation);
    } catch (error) {
      if (!(error instanceof OpError)) throw error;
      if (whole) return state;
    }
  }
  return shown;
}

/**
 * The state after what still makes sense of many changes, one after another. What was typed into one text
 * in a row is put together first: then thousands of keystrokes cost little more than one.
 */
export function applyInTurn(state: Json, changes: readonly (readonly Operation[])[]): Json {
  let shown = state;
  for (let at = 0; at < changes.length; ) {
    const first = changes[at++] ?? [];
    const before = shown;
    shown = applyLoosely(before, first);
    const path = typedInto(first);
    const run: SpliceOp[] = [];
    while (path !== undefined && at < changes.length && typedInto(changes[at] ?? []) === path) {
      run.push(...((changes[at++] ?? []) as readonly SpliceOp[]));
    }
    // Where the first came to nothing, or to another element's id, so do those behind it.
    if (path === undefined || run.length === 0 || shown === before) continue;
    const tokens = parse(path);
    const text = spliceAll(get(shown, tokens) as string, run);
    shown = replace(shown, tokens, text, path);
  }
  return shown;
}

/** The path of the one text that a change edits, where it does nothing else. */
function typedInto(ops: readonly Operation[]): string | undefined {
  const [first] = ops;
  if (first?.op !== "splice" || first.path.endsWith("/id")) return undefined;
  return ops.every((one) => one.op === "splice" && one.path === first.path)
    ? first.path
    : undefined;
}

/**
 * Operations as they are stored and sent: frozen copies, every value checked, each inserted object
 * with an `id`. Throws `OpError` for what the server would refuse whatever the state is.
 */
export function prepare(ops: readonly Operation[], newId: () => string): readonly Operation[] {
  const alone = ops.find(({ op }) => op === "restore" || op === "resolve" || op === "end");
  if (alone && ops.length > 1) {
    throw new OpError("bad_op", `expected "${alone.op}" alone in its change`);
  }
  return Object.freeze(
    ops.map((given) => {
      const path = pathOf(given);
      // The operation itself is one container around its value, which has others around it.
      const depth = DEEPEST + 1 - parse(path).length;
      const operation = clone(given, path, depth) as unknown as Operation;
      if (operation.op === "insert") {
        const { value } = operation;
        return isObject(value) && !Object.hasOwn(value, "id")
          ? Object.freeze({ ...operation, value: Object.freeze({ id: newId(), ...value }) })
          : operation;
      }
      if (operation.op === "splice") {
        const { index, delete: remove, path } = operation;
        if (!(Number.isInteger(index) && index >= 0 && Number.isInteger(remove) && remove >= 0)) {
          throw new OpError("bad_op", "expected index and delete to be whole numbers from 0", path);
        }
        if (typeof operation.insert !== "string") {
          throw new OpError("bad_op", "expected insert to be a string", path);
        }
      }
      if (operation.op === "inc" && typeof operation.by !== "number") {
        throw new OpError("bad_op", "expected by to be a number", operation.path);
      }
      return operation;
    }),
  );
}

/** The operations that are about a path, and whether they need a value. */
const NEEDS_VALUE = {
  set: true,
  unset: false,
  insert: true,
  move: false,
  inc: false,
  splice: false,
  test: true,
};

/** An operation's path, empty where it has none. Throws where one lacks what its kind needs. */
function pathOf(operation: Operation): string {
  const { op } = operation;
  if (op === "restore" || op === "resolve" || op === "end") return "";
  const { path, value } = operation as { readonly path: unknown; readonly value?: unknown };
  const named = typeof path === "string" ? path : undefined;
  if (!Object.hasOwn(NEEDS_VALUE, op)) {
    throw new OpError("bad_op", `expected an operation, got ${String(op)}`, named);
  }
  if (named === undefined) {
    throw new OpError("bad_path", `expected ${op} to have a path, got ${typeof path}`);
  }
  if (NEEDS_VALUE[op] && value === undefined) {
    throw new OpError("bad_op", `expected ${op} to have a value: to remove one, use unset`, named);
  }
  return named;
}

/** Throws where a splice reaches beyond its text: its author cannot have seen what it means. */
export function checkReach(state: Json, operation: Operation): void {
  if (operation.op !== "splice") return;
  const text = get(state, parse(operation.path));
  const length = typeof text === "string" ? points(text) : 0;
  const end = operation.index + operation.delete;
  if (end > length) {
    throw new OpError(
      "bad_range",
      `expected an edit within the text of ${length} code points, got one up to ${end}`,
      operation.path,
    );
  }
}

function set(state: Json, path: string, value: Json): Json {
  const tokens = parse(path);
  if (tokens.length === 0) return isObject(value) ? value : mustBe("an object", value, path);
  keepId(state, tokens, value, path);
  return editParent(state, tokens, byId, path, (parent, token) => {
    if (!isArray(parent)) return put(parent, token, value);
    const index = byId(parent, token, path);
    if (idOf(value) !== token.slice(1)) {
      throw new OpError("bad_id", "expected the element's own id: it cannot be changed", path);
    }
    return index < 0 ? Object.freeze([...parent, value]) : put(parent, index, value);
  });
}

/** Throws where the id of a list's element would become another, or none. */
function keepId(state: Json, tokens: Tokens, value: Json | undefined, path: string): void {
  const element = tokens.at(-2);
  if (tokens.at(-1) !== "id" || element?.[0] !== "#" || value === element.slice(1)) return;
  if (isArray(get(state, tokens.slice(0, -2)))) {
    throw new OpError("bad_id", "an element's id cannot be changed: insert another", path);
  }
}

function unset(state: Json, path: string): Json {
  const tokens = parse(path);
  if (tokens.length === 0) throw new OpError("bad_path", "expected a path below the root", path);
  if (get(state, tokens) === undefined) return state;
  keepId(state, tokens, undefined, path);
  return editParent(state, tokens, byId, path, (parent, token) => {
    if (!isArray(parent)) return without(parent, token);
    const index = byId(parent, token, path);
    return parent.filter((_, at) => at !== index);
  });
}

function insert(list: Json | undefined, operation: Operation & { op: "insert" }): Json {
  if (!isArray(list)) return mustBe("a list", list, operation.path);
  const { value, after } = operation;
  const id = idOf(value);
  const there = id === undefined ? -1 : list.findIndex((element) => idOf(element) === id);
  return there < 0 ? placed(list, value, after) : put(list, there, value);
}

/** The list with one more element: at the front (null), after an id, or at the end. */
function placed(list: JsonArray, value: Json, after: string | null | undefined): Json {
  const index = after === null ? 0 : list.findIndex((element) => idOf(element) === after) + 1;
  const at = after === null || (after !== undefined && index > 0) ? index : list.length;
  return Object.freeze([...list.slice(0, at), value, ...list.slice(at)]);
}

/** The state with the value at a path replaced by what `edit` makes of it and its parent. */
function change(
  state: Json,
  path: string,
  edit: (value: Json | undefined, parent: Json | undefined) => Json,
): Json {
  const tokens = parse(path);
  const value = edit(get(state, tokens), get(state, tokens.slice(0, -1)));
  keepId(state, tokens, value, path);
  return replace(state, tokens, value, path);
}

function replace(state: Json, tokens: Tokens, value: Json, path: string): Json {
  if (tokens.length === 0) return value;
  return editParent(state, tokens, byId, path, (parent, token) => {
    if (!isArray(parent)) return put(parent, token, value);
    const index = byId(parent, token, path);
    return index < 0
      ? mustBe("an element that is there", undefined, path)
      : put(parent, index, value);
  });
}

/** The protocol's code for a value of the wrong kind, and what it should have been. */
const KINDS = {
  "a list": "not_a_list",
  "a number": "not_a_number",
  "a string": "not_a_string",
  "an object": "bad_value",
  "an element of a list": "not_a_list",
  "an element that is there": "bad_path",
};

function mustBe(expected: keyof typeof KINDS, value: unknown, path: string): never {
  const kind = value === undefined ? "nothing" : kindOf(value);
  throw new OpError(KINDS[expected], `expected ${expected}, got ${kind}`, path);
}
