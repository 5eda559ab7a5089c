// What is different between two states, as a tree that both are shown in.

import type { Json } from "./api.js";

export type Mark = "same" | "inside" | "added" | "removed" | "changed";

/** One place of a state. `inside`: it is there before and after, and something below is not alike. */
export interface Place {
  /** What its parent calls it. */
  key: string;
  /** As a JSON Pointer, elements of lists by their index afterwards. */
  path: string;
  mark: Mark;
  /** What stands there, or stood there when it is `removed`. */
  value: Json;
  before?: Json;
  children: Place[] | null;
}

export interface Change {
  path: string;
  mark: Mark;
  before: Json | undefined;
  after: Json | undefined;
}

type Fields = { [key: string]: Json };

const isObject = (value: Json | undefined): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Compares states; without a `before` everything is the same. */
export function compare(after: Json, before: Json | undefined): Place {
  const place = whole("", "", after, "same");
  return before === undefined ? place : compared("", "", before, after);
}

function whole(key: string, path: string, value: Json, mark: Mark): Place {
  const entries = entriesOf(value);
  const children = entries?.map(([name, one]) => whole(name, join(path, name), one, mark)) ?? null;
  return { key, path, mark, value, children };
}

function compared(key: string, path: string, before: Json, after: Json): Place {
  if (isObject(before) && isObject(after)) {
    const children = Object.entries(after).map(([name, value]) =>
      Object.hasOwn(before, name)
        ? compared(name, join(path, name), before[name] as Json, value)
        : whole(name, join(path, name), value, "added"),
    );
    for (const [name, value] of Object.entries(before)) {
      if (!Object.hasOwn(after, name)) {
        children.push(whole(name, join(path, name), value, "removed"));
      }
    }
    return parent(key, path, after, children);
  }
  if (Array.isArray(before) && Array.isArray(after)) {
    return parent(key, path, after, elements(path, before, after));
  }
  if (before === after) return { key, path, mark: "same", value: after, children: null };
  return { ...whole(key, path, after, "changed"), mark: "changed", before };
}

/** Elements with an id are known again by it; others by where they stand. */
function elements(path: string, before: Json[], after: Json[]): Place[] {
  const known = new Map(before.map((value, index) => [nameOf(value, index), value]));
  const children = after.map((value, index) => {
    const name = nameOf(value, index);
    const old = known.get(name);
    known.delete(name);
    return old === undefined
      ? whole(String(index), join(path, String(index)), value, "added")
      : compared(String(index), join(path, String(index)), old, value);
  });
  for (const [name, value] of known) {
    children.push(whole(name.slice(1), join(path, name), value, "removed"));
  }
  return children;
}

function nameOf(value: Json, index: number): string {
  return isObject(value) && typeof value.id === "string" ? `#${value.id}` : `@${index}`;
}

function parent(key: string, path: string, value: Json, children: Place[]): Place {
  const same = children.every((one) => one.mark === "same");
  return { key, path, mark: same ? "same" : "inside", value, children };
}

function entriesOf(value: Json): [string, Json][] | null {
  if (Array.isArray(value)) return value.map((one, index) => [String(index), one]);
  return isObject(value) ? Object.entries(value) : null;
}

function join(path: string, name: string): string {
  return `${path}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

/** Lists what changed, in the tree's order, at most so much. */
export function changes(place: Place, most: number): Change[] {
  const found: Change[] = [];
  const visit = (one: Place): void => {
    if (found.length >= most || one.mark === "same") return;
    if (one.mark === "inside") for (const child of one.children ?? []) visit(child);
    else {
      const before = one.mark === "removed" ? one.value : one.before;
      const after = one.mark === "removed" ? undefined : one.value;
      found.push({ path: one.path, mark: one.mark, before, after });
    }
  };
  visit(place);
  return found;
}

export interface Row {
  place: Place;
  level: number;
  /** Null where nothing can be opened. */
  open: boolean | null;
}

/** The tree as the lines that are shown: `isOpen` says which places are. */
export function rows(root: Place, isOpen: (place: Place, level: number) => boolean): Row[] {
  const found: Row[] = [];
  const visit = (place: Place, level: number): void => {
    const can = place.children !== null && place.children.length > 0;
    const open = can && isOpen(place, level);
    found.push({ place, level, open: can ? open : null });
    if (open) for (const child of place.children ?? []) visit(child, level + 1);
  };
  for (const child of root.children ?? []) visit(child, 1);
  return found;
}
