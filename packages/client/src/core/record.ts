/**
 * Operations from a function that edits a draft of the state.
 *
 * The draft is copied lazily, level by level; afterwards only the visited levels are compared with
 * what they came from. In a list of objects with ids, each element keeps its identity: what was put
 * in becomes `insert`, what was taken out `unset`, what changed its place `move`. An assignment
 * becomes `set`, also `+=` on a number: only the caller knows whether it meant `inc`.
 */

import { OpError } from "./errors.js";
import {
  clone,
  equal,
  isArray,
  isObject,
  type Json,
  type JsonArray,
  type JsonObject,
} from "./json.js";
import { format, type Tokens } from "./pointer.js";
import type { Operation } from "./wire.js";

type Target = Record<string, unknown> | unknown[];

/** What `recipe` did to a draft of the state, as operations. Throws `OpError` for what is no JSON. */
export function record<Draft>(
  state: JsonObject,
  recipe: (draft: Draft) => unknown,
  newId: () => string,
): Operation[] {
  /** The draft's proxies, each with what it was copied from and what it became. */
  const drafts = new Map<unknown, { base: JsonArray | JsonObject; target: Target }>();

  const draft = (base: JsonArray | JsonObject): unknown => {
    const target: Target = isArray(base) ? [...base] : { ...base };
    const proxy: unknown = new Proxy(target, {
      get(_, key, receiver) {
        const value: unknown = Reflect.get(target, key, receiver);
        if (typeof key === "symbol" || !Object.hasOwn(target, key)) return value;
        // What was not frozen is the caller's own: the draft holds it as it is.
        if (typeof value !== "object" || value === null || !Object.isFrozen(value)) return value;
        const inner = draft(value as JsonArray | JsonObject);
        define(target, key, inner);
        return inner;
      },
      set(_, key, value) {
        // `__proto__` is an ordinary key: an assignment would call a setter.
        return Array.isArray(target) ? Reflect.set(target, key, value) : define(target, key, value);
      },
    });
    drafts.set(proxy, { base, target });
    return proxy;
  };

  const ops: Operation[] = [];

  /** What became of `base`, which now is `value`; true where `value` is not its draft. */
  const compare = (path: Tokens, base: Json | undefined, value: unknown): boolean => {
    if (value === base && base !== undefined) return false;
    const made = drafts.get(value);
    if (made === undefined || made.base !== base) {
      return base === undefined || !equal(base, clone(value, format(path)));
    }
    if (isArray(made.base)) compareLists(path, made.base, made.target as unknown[]);
    else compareObjects(path, made.base, made.target as Record<string, unknown>);
    return false;
  };

  const compareObjects = (path: Tokens, base: JsonObject, target: Record<string, unknown>) => {
    for (const key of Object.keys(base)) {
      if (!Object.hasOwn(target, key) || target[key] === undefined) {
        ops.push({ op: "unset", path: format([...path, key]) });
      }
    }
    for (const key of Object.keys(target)) {
      const value = target[key];
      if (value === undefined) continue;
      const before = Object.hasOwn(base, key) ? base[key] : undefined;
      const at = [...path, key];
      if (compare(at, before, value)) {
        ops.push({ op: "set", path: format(at), value: clone(value, format(at)) });
      }
    }
  };

  const compareLists = (path: Tokens, base: JsonArray, target: readonly unknown[]) => {
    const list = format(path);
    const before = new Map(base.map((element, index) => [identity(element) ?? index, index]));
    const addressed =
      before.size === base.length && [...before.keys()].every((key) => typeof key === "string");
    const ids = Array.from(target, (element) => identity(element) ?? newId());
    const now = new Set(ids);
    if (!addressed || now.size < ids.length || !target.every(canHaveId)) {
      const value = clone(target, list);
      if (!equal(base, value)) ops.push({ op: "set", path: list, value });
      return;
    }
    for (const id of before.keys()) {
      if (!now.has(String(id))) ops.push({ op: "unset", path: format([...path, `#${id}`]) });
    }
    const still = longestRun(ids.map((id) => before.get(id) ?? -1));
    let lastOld = ids.length - 1;
    while (lastOld >= 0 && !before.has(ids[lastOld] ?? "")) lastOld--;
    for (const [index, id] of ids.entries()) {
      const old = before.get(id);
      const element = [...path, `#${id}`];
      const after = ids[index - 1] ?? null;
      if (old === undefined) {
        const value = { id, ...(clone(target[index], list) as JsonObject) };
        // An element behind all old ones was meant for the end, wherever that will be.
        ops.push({ op: "insert", path: list, value, ...(index > lastOld ? {} : { after }) });
      } else {
        if (!still.has(old)) ops.push({ op: "move", path: format(element), after });
        if (compare(element, base[old], target[index])) {
          const value = clone(target[index], format(element));
          ops.push({ op: "set", path: format(element), value });
        }
      }
    }
  };

  const root = draft(state);
  const result = recipe(root as Draft);
  if (result instanceof Promise) {
    throw new OpError("bad_op", "expected a function that ends at once, got one with a promise");
  }
  compare([], state, root);
  return ops;
}

function define(target: object, key: PropertyKey, value: unknown): boolean {
  return Reflect.defineProperty(target, key, {
    value,
    writable: true,
    enumerable: true,
    configurable: true,
  });
}

/** An element's string id, also of a draft or of what an application put in. */
function identity(element: unknown): string | undefined {
  if (!isObject(element as Json)) return undefined;
  const object = element as JsonObject;
  const id = Object.hasOwn(object, "id") ? object.id : undefined;
  return typeof id === "string" ? id : undefined;
}

function canHaveId(element: unknown): boolean {
  if (!isObject(element as Json)) return false;
  return identity(element) !== undefined || !Object.hasOwn(element as object, "id");
}

/** The longest ascending choice of these numbers (-1 aside): the elements that need not move. */
function longestRun(numbers: readonly number[]): Set<number> {
  /** For each length, the run of that length that ends lowest, linked to what precedes it. */
  type Link = { n: number; previous: Link | undefined };
  const ends: Link[] = [];
  for (const n of numbers) {
    if (n < 0) continue;
    let low = 0;
    for (let high = ends.length; low < high; ) {
      const middle = (low + high) >> 1;
      if ((ends[middle]?.n ?? n) < n) low = middle + 1;
      else high = middle;
    }
    ends[low] = { n, previous: ends[low - 1] };
  }
  const run = new Set<number>();
  for (let link = ends.at(-1); link; link = link.previous) run.add(link.n);
  return run;
}
