import { describe, expect, test } from "vitest";
import { clone } from "../../src/core/json";
import { applyPatch } from "../../src/core/patch";
import type { PatchOperation } from "../../src/core/wire";

const STATE = clone({ a: { b: 1 }, list: [1, 2, 3], text: "a😀b" });

describe("patches (protocol, section 5)", () => {
  test.each<[PatchOperation[], object]>([
    [[{ op: "add", path: "/a/c", value: 2 }], { a: { b: 1, c: 2 } }],
    [[{ op: "add", path: "/list/1", value: 9 }], { list: [1, 9, 2, 3] }],
    [[{ op: "add", path: "/list/3", value: 9 }], { list: [1, 2, 3, 9] }],
    [[{ op: "add", path: "/list/-", value: 9 }], { list: [1, 2, 3, 9] }],
    [[{ op: "replace", path: "/list/0", value: 9 }], { list: [9, 2, 3] }],
    [[{ op: "remove", path: "/list/2" }], { list: [1, 2] }],
    [[{ op: "move", from: "/list/0", path: "/list/2" }], { list: [2, 3, 1] }],
    [[{ op: "move", from: "/a/b", path: "/b" }], { a: {}, b: 1 }],
    [[{ op: "str_ins", path: "/text", pos: 2, str: "x" }], { text: "a😀xb" }],
    [[{ op: "str_del", path: "/text", pos: 1, len: 1 }], { text: "ab" }],
    [[{ op: "add", path: "/__proto__", value: 1 }], JSON.parse('{"__proto__": 1}') as object],
  ])("W4, P2: %j", (patch, expected) => {
    const next = applyPatch(STATE, patch) as Record<string, unknown>;
    expect(next).toEqual({ ...(STATE as object), ...expected });
    expect(Object.isFrozen(next) && Object.isFrozen(next.list)).toBe(true);
  });

  test("the whole state can be replaced", () => {
    expect(applyPatch(STATE, [{ op: "replace", path: "", value: {} }])).toEqual({});
  });

  test("untouched parts are shared", () => {
    const next = applyPatch(STATE, [{ op: "replace", path: "/text", value: "" }]);
    expect((next as Record<string, unknown>).list).toBe((STATE as Record<string, unknown>).list);
  });

  test.each<PatchOperation>([
    { op: "remove", path: "/gone" },
    { op: "remove", path: "/list/3" },
    { op: "replace", path: "/gone", value: 1 },
    { op: "add", path: "/list/4", value: 1 },
    { op: "add", path: "/list/01", value: 1 },
    { op: "add", path: "/gone/x", value: 1 },
    { op: "move", from: "/gone", path: "/x" },
    { op: "str_ins", path: "/list", pos: 0, str: "" },
    { op: "remove", path: "/constructor" },
    { op: "copy", from: "/a", path: "/b" } as never,
  ])("%j does not fit, and says so", (step) => {
    expect(() => applyPatch(STATE, [step])).toThrow();
  });
});
