import { expect, test } from "vitest";
import type { Json } from "../src/api.js";
import { changes, compare, rows } from "../src/difference.js";

const told = (before: Json, after: Json) =>
  changes(compare(after, before), 99).map((one) => [one.mark, one.path, one.before, one.after]);

test("what changed is told by its path, with both values", () => {
  expect(told({ a: 1, b: { c: "x" }, d: null }, { a: 2, b: { c: "x" }, e: [true] })).toEqual([
    ["changed", "/a", 1, 2],
    ["added", "/e", undefined, [true]],
    ["removed", "/d", null, undefined],
  ]);
});

test("an element with an id is known again wherever it went", () => {
  const before = [
    { id: "a", n: 1 },
    { id: "b", n: 1 },
  ];
  const after = [{ id: "b", n: 2 }, { id: "a", n: 1 }, { id: "c" }];
  expect(told({ list: before }, { list: after })).toEqual([
    ["changed", "/list/0/n", 1, 2],
    ["added", "/list/2", undefined, { id: "c" }],
  ]);
  expect(told({ list: after }, { list: [] })).toHaveLength(3);
});

test("types count: a list is no object, and 1 is not true", () => {
  expect(told({ a: [], b: 1 }, { a: {}, b: true })).toEqual([
    ["changed", "/a", [], {}],
    ["changed", "/b", 1, true],
  ]);
});

test("names that objects have by themselves are names like any other", () => {
  const tricky = JSON.parse('{"__proto__": {"x": 1}, "toString": 2, "a/b~c": 3}') as Json;
  expect(told({}, tricky).map(([mark, path]) => [mark, path])).toEqual([
    ["added", "/__proto__"],
    ["added", "/toString"],
    ["added", "/a~1b~0c"],
  ]);
  expect(told(tricky, tricky)).toEqual([]);
});

test("without a state before nothing is different", () => {
  expect(changes(compare({ a: { b: 1 } }, undefined), 9)).toEqual([]);
});

test("no more is told than was asked for", () => {
  const many = Object.fromEntries(Array.from({ length: 50 }, (_, n) => [`k${n}`, n]));
  expect(changes(compare(many, {}), 7)).toHaveLength(7);
});

test("rows are the open part of the tree, with their levels", () => {
  const lines = rows(compare({ a: { b: { c: 1 } }, d: [] }, undefined), (_, level) => level < 2);
  expect(lines.map((line) => [line.place.path, line.level, line.open])).toEqual([
    ["/a", 1, true],
    ["/a/b", 2, false],
    ["/d", 1, null],
  ]);
});
