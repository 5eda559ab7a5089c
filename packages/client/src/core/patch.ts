/**
 * Patches: RFC 6902 `add`, `remove`, `replace` and `move`, and text by code points. A patch is exact
 * for one version; where it does not fit, this client's copy is wrong, and it must say so.
 */

import { OpError } from "./errors.js";
import { isArray, type Json } from "./json.js";
import { byIndex, editParent, get, parse, put, without } from "./pointer.js";
import { splice } from "./text.js";
import type { PatchOperation } from "./wire.js";

/** The state after a patch. Throws `OpError` where it does not fit. */
export function applyPatch(state: Json, patch: readonly PatchOperation[]): Json {
  return patch.reduce(applyStep, state);
}

export function applyStep(state: Json, step: PatchOperation): Json {
  switch (step.op) {
    case "add":
      return add(state, step.path, step.value);
    case "replace":
      return replace(state, step.path, step.value);
    case "remove":
      return remove(state, step.path);
    case "move": {
      const moved = get(state, parse(step.from), byIndex);
      if (moved === undefined) return unfit(step.from);
      return add(remove(state, step.from), step.path, moved);
    }
    case "str_ins":
      return replace(state, step.path, splice(text(state, step.path), step.pos, 0, step.str));
    case "str_del":
      return replace(state, step.path, splice(text(state, step.path), step.pos, step.len, ""));
    default:
      throw new OpError(
        "bad_patch",
        `expected a patch, got ${String((step as PatchOperation).op)}`,
      );
  }
}

function add(state: Json, path: string, value: Json): Json {
  const tokens = parse(path);
  if (tokens.length === 0) return value;
  return editParent(state, tokens, byIndex, path, (parent, token) => {
    if (!isArray(parent)) return put(parent, token, value);
    const known = token === "-" || token === String(parent.length);
    const index = known ? parent.length : byIndex(parent, token, path);
    return index < 0 ? unfit(path) : [...parent.slice(0, index), value, ...parent.slice(index)];
  });
}

function replace(state: Json, path: string, value: Json): Json {
  const tokens = parse(path);
  if (tokens.length === 0) return value;
  return editParent(state, tokens, byIndex, path, (parent, token) => {
    if (!isArray(parent))
      return Object.hasOwn(parent, token) ? put(parent, token, value) : unfit(path);
    const index = byIndex(parent, token, path);
    return index < 0 ? unfit(path) : put(parent, index, value);
  });
}

function remove(state: Json, path: string): Json {
  return editParent(state, parse(path), byIndex, path, (parent, token) => {
    if (!isArray(parent))
      return Object.hasOwn(parent, token) ? without(parent, token) : unfit(path);
    const index = byIndex(parent, token, path);
    return index < 0 ? unfit(path) : parent.filter((_, at) => at !== index);
  });
}

function text(state: Json, path: string): string {
  const value = get(state, parse(path), byIndex);
  return typeof value === "string" ? value : unfit(path);
}

function unfit(path: string): never {
  throw new OpError("bad_patch", "expected a patch that fits this state", path);
}
