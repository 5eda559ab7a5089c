/**
 * JSON values: what may be stored, and when two of them are equal (protocol, section 2).
 *
 * Every value in here is deeply frozen, so that parts of one state can be shared with the next.
 * Objects are only ever read through `member` and written through `{ ...object, [key]: value }`:
 * both treat `__proto__` and `constructor` as the ordinary keys that they are in JSON.
 */

import { OpError } from "./errors.js";

export type Json = null | boolean | number | string | JsonArray | JsonObject;
export type JsonArray = readonly Json[];
export type JsonObject = { readonly [key: string]: Json };

const LONE_SURROGATE = /[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/;

/** How many containers may lie within each other, the state itself included (rule V5). */
export const DEEPEST = 64;

export function isArray(value: unknown): value is JsonArray {
  return Array.isArray(value);
}

export function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !isArray(value);
}

/** The object's own member, or undefined: what its prototype has is no JSON. */
export function member(object: JsonObject, key: string): Json | undefined {
  return Object.hasOwn(object, key) ? object[key] : undefined;
}

/** The string `id` of a list element, or undefined. */
export function idOf(element: Json | undefined): string | undefined {
  const id = isObject(element) ? member(element, "id") : undefined;
  return typeof id === "string" ? id : undefined;
}

export function kindOf(value: unknown): string {
  return value === null ? "null" : isArray(value) ? "array" : typeof value;
}

/**
 * Equal JSON types, then equal values: `true` is not `1`, `1` is `1.0`, `-0` is `0`.
 * Shared parts compare in no time.
 */
export function equal(left: Json | undefined, right: Json | undefined): boolean {
  if (left === right) return true;
  if (isArray(left)) {
    return (
      isArray(right) &&
      left.length === right.length &&
      left.every((item, index) => equal(item, right[index]))
    );
  }
  if (!isObject(left) || !isObject(right)) return false;
  const keys = Object.keys(left);
  return (
    keys.length === Object.keys(right).length &&
    keys.every((key) => Object.hasOwn(right, key) && equal(left[key], right[key]))
  );
}

/**
 * A frozen deep copy of what an application handed in. Members that are `undefined` are left out,
 * as `JSON.stringify` does, and `-0` becomes `0`, because `JSON.stringify` would lose its sign.
 * Throws `OpError` (`bad_number`, `bad_string`, `bad_value`, `too_deep`) for what JSON cannot say.
 */
export function clone(value: unknown, path = "", depth = DEEPEST): Json {
  switch (typeof value) {
    case "boolean":
      return value;
    case "number":
      if (Number.isFinite(value)) return value === 0 ? 0 : value;
      throw new OpError("bad_number", `expected a finite number, got ${value}`, path);
    case "string":
      return checked(value, path);
    case "object": {
      if (value === null) return null;
      if (depth <= 0) {
        throw new OpError("too_deep", `expected at most ${DEEPEST} levels of nesting`, path);
      }
      if (isArray(value))
        return Object.freeze(Array.from(value, (item) => clone(item, path, depth - 1)));
      const prototype: unknown = Object.getPrototypeOf(value);
      if (prototype === null || Object.getPrototypeOf(prototype) === null) {
        const entries = Object.entries(value).filter(([, item]) => item !== undefined);
        return Object.freeze(
          Object.fromEntries(
            entries.map(([key, item]) => [checked(key, path), clone(item, path, depth - 1)]),
          ),
        );
      }
    }
  }
  const what = typeof value === "object" ? (value?.constructor?.name ?? "object") : typeof value;
  throw new OpError("bad_value", `expected a JSON value, got ${what}: convert it first`, path);
}

/** Freezes what `JSON.parse` made, in place. */
export function freeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    // What JSON has made has no members but its own; a list of them would cost as much as the rest.
    for (const key in value) freeze(value[key]);
  }
  return value;
}

function checked(text: string, path: string): string {
  if (LONE_SURROGATE.test(text)) {
    throw new OpError("bad_string", "expected Unicode text, got a lone surrogate", path);
  }
  return text;
}
