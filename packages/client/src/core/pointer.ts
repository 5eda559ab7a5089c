/**
 * JSON Pointers (RFC 6901). In an operation a token under a list is `#` and an element's `id`; in a
 * patch it is an index (protocol, section 2).
 */

import { OpError } from "./errors.js";
import { idOf, isArray, isObject, type Json, type JsonArray, type JsonObject } from "./json.js";

export type Tokens = readonly string[];

/** Splits a pointer; throws `OpError` (`bad_path`) where it is none. */
export function parse(pointer: string): Tokens {
  if (pointer === "") return [];
  if (typeof pointer !== "string" || pointer[0] !== "/" || /~(?![01])/.test(pointer)) {
    throw new OpError(
      "bad_path",
      'expected a JSON Pointer: "" or "/…", with ~0 for ~ and ~1 for /',
      String(pointer),
    );
  }
  return pointer.slice(1).split("/").map(decode);
}

export function format(tokens: Tokens): string {
  return tokens.map((token) => `/${token.replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

function decode(token: string): string {
  return token.replaceAll("~1", "/").replaceAll("~0", "~");
}

/** How a list's token becomes an index; -1 where the element is not there. Throws on a bad token. */
export type Locate = (list: JsonArray, token: string, path: string) => number;

export const byId: Locate = (list, token, path) => {
  if (token[0] !== "#") {
    throw new OpError(
      "bad_path",
      `expected "#" and an element's id under a list, got "${token}": an index may mean another element by the time the change arrives`,
      path,
    );
  }
  const id = token.slice(1);
  return list.findIndex((element) => idOf(element) === id);
};

export const byIndex: Locate = (list, token, path) => {
  if (!/^(0|[1-9]\d*)$/.test(token)) {
    throw new OpError("bad_path", `expected an index under a list, got "${token}"`, path);
  }
  const index = Number(token);
  return index < list.length ? index : -1;
};

/** The value under one token of a container, or undefined where there is none. */
export function child(node: Json | undefined, token: string, locate: Locate, path: string) {
  if (isArray(node)) return node[locate(node, token, path)];
  return isObject(node) && Object.hasOwn(node, token) ? node[token] : undefined;
}

/** The value at a path, or undefined where there is none. */
export function get(root: Json, tokens: Tokens, locate: Locate = byId): Json | undefined {
  let node: Json | undefined = root;
  for (const token of tokens) {
    if (node === undefined) return undefined;
    node = child(node, token, locate, "");
  }
  return node;
}

/**
 * The root with the container that holds the last token replaced by what `edit` makes of it.
 * Copies the containers on the way and shares all others.
 */
export function editParent(
  root: Json,
  tokens: Tokens,
  locate: Locate,
  path: string,
  edit: (parent: JsonArray | JsonObject, token: string) => Json,
): Json {
  const step = (node: Json, depth: number): Json => {
    const token = tokens[depth] ?? "";
    if (!isArray(node) && !isObject(node)) return missing(path);
    if (depth === tokens.length - 1) return Object.freeze(edit(node, token));
    const key = isArray(node) ? locate(node, token, path) : token;
    const next = isArray(node) ? node[Number(key)] : child(node, token, locate, path);
    if (next === undefined) return missing(path);
    const edited = step(next, depth + 1);
    return edited === next ? node : put(node, key, edited);
  };
  return step(root, 0);
}

function missing(path: string): never {
  throw new OpError("bad_path", "expected a path whose parent exists", path);
}

/** A copy of a container with one member or element replaced. */
export function put(node: JsonArray | JsonObject, key: string | number, value: Json): Json {
  if (isArray(node)) {
    const copy = node.slice();
    copy[Number(key)] = value;
    return Object.freeze(copy);
  }
  return Object.freeze({ ...node, [key]: value });
}

/** A copy of an object without one member. */
export function without(node: JsonObject, key: string): JsonObject {
  const { [key]: _gone, ...rest } = node;
  return rest;
}
