import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { clone, equal, type Json, type JsonObject } from "../../src/core/json";
import { applyAll } from "../../src/core/ops";
import { record } from "../../src/core/record";

interface Item {
  id?: string;
  v?: number;
}

interface Doc {
  n: number;
  name?: string | undefined;
  list: Item[];
  tags: string[];
  inner: { a: number; b?: { c: number } };
}

const STATE = clone({
  n: 1,
  name: "x",
  list: [
    { id: "a", v: 1 },
    { id: "b", v: 2 },
    { id: "c", v: 3 },
  ],
  tags: ["p", "q"],
  inner: { a: 1, b: { c: 1 } },
}) as JsonObject;

let n = 0;
const newId = () => `new-${++n}`;

function ops(recipe: (draft: Doc) => unknown) {
  n = 0;
  return record<Doc>(STATE, recipe, newId);
}

describe("update: a draft's edits as operations", () => {
  test("assignment becomes set, also += on a number", () => {
    expect(
      ops((draft) => {
        draft.n += 1;
        draft.inner.a = 2;
      }),
    ).toEqual([
      { op: "set", path: "/n", value: 2 },
      { op: "set", path: "/inner/a", value: 2 },
    ]);
  });

  test("delete becomes unset, undefined too", () => {
    expect(
      ops((draft) => {
        delete draft.inner.b;
        draft.name = undefined;
      }),
    ).toEqual([
      { op: "unset", path: "/name" },
      { op: "unset", path: "/inner/b" },
    ]);
  });

  test("P3: push becomes insert at the end, with an id", () => {
    expect(ops((draft) => draft.list.push({ v: 4 }, { id: "e" }))).toEqual([
      { op: "insert", path: "/list", value: { id: "new-1", v: 4 } },
      { op: "insert", path: "/list", value: { id: "e" } },
    ]);
  });

  test("unshift becomes insert at the front, splice in the middle insert after", () => {
    expect(ops((draft) => draft.list.unshift({ id: "f" }))).toEqual([
      { op: "insert", path: "/list", value: { id: "f" }, after: null },
    ]);
    expect(ops((draft) => draft.list.splice(1, 1, { id: "m" }))).toEqual([
      { op: "unset", path: "/list/#b" },
      { op: "insert", path: "/list", value: { id: "m" }, after: "a" },
    ]);
  });

  test("an element's edit addresses it by its id, wherever it went", () => {
    expect(
      ops((draft) => {
        const first = draft.list[0];
        draft.list.reverse();
        if (first) first.v = 9;
      }),
    ).toEqual(expect.arrayContaining([{ op: "set", path: "/list/#a/v", value: 9 }]));
  });

  test("a moved element is one move", () => {
    expect(
      ops((draft) => {
        const [first] = draft.list.splice(0, 1);
        if (first) draft.list.push(first);
      }),
    ).toEqual([{ op: "move", path: "/list/#a", after: "c" }]);
  });

  test("P4: a list of plain values changes as a whole", () => {
    expect(ops((draft) => draft.tags.push("r"))).toEqual([
      { op: "set", path: "/tags", value: ["p", "q", "r"] },
    ]);
  });

  test("an assigned list is a set: only its edits in place are its elements'", () => {
    expect(
      ops((draft) => {
        draft.list = draft.list.filter(({ id }) => id !== "b");
      }),
    ).toEqual([
      {
        op: "set",
        path: "/list",
        value: [
          { id: "a", v: 1 },
          { id: "c", v: 3 },
        ],
      },
    ]);
  });

  test("what is the same afterwards is no operation", () => {
    expect(
      ops((draft) => {
        draft.n = 1;
        draft.inner = { a: 1, b: { c: 1 } };
        draft.tags.push("r");
        draft.tags.pop();
        draft.list.sort();
      }),
    ).toEqual([]);
  });

  test("what an application put in can still be edited through the draft", () => {
    expect(
      ops((draft) => {
        draft.inner = { a: 5 };
        draft.inner.b = { c: 6 };
      }),
    ).toEqual([{ op: "set", path: "/inner", value: { a: 5, b: { c: 6 } } }]);
  });

  test("__proto__ can be assigned as any other key", () => {
    const made = record<Record<string, unknown>>(
      STATE,
      (draft) => {
        const key = "__proto__";
        draft[key] = { x: 1 };
      },
      newId,
    );
    expect(made).toEqual([{ op: "set", path: "/__proto__", value: { x: 1 } }]);
  });

  test("what is no JSON is refused, and a promise too", () => {
    expect(() => ops((draft) => Object.assign(draft, { n: Number.NaN }))).toThrow(/finite/);
    expect(() => ops(async (draft) => Object.assign(draft, { n: 2 }))).toThrow(/ends at once/);
  });

  test("the state itself cannot be edited", () => {
    expect(() => ops((draft) => void (draft.list[0] as Item).v)).not.toThrow();
    expect(STATE).toMatchObject({ n: 1 });
  });

  test("the operations lead where the draft led", () => {
    const edit = fc.oneof(
      fc.record({ kind: fc.constant("push"), id: fc.option(fc.nat(9)), v: fc.nat(5) }),
      fc.record({ kind: fc.constant("unshift"), id: fc.option(fc.nat(9)), v: fc.nat(5) }),
      fc.record({ kind: fc.constant("splice"), at: fc.nat(6), remove: fc.nat(3), v: fc.nat(5) }),
      fc.record({ kind: fc.constant("reverse") }),
      fc.record({ kind: fc.constant("set"), at: fc.nat(6), v: fc.nat(5) }),
      fc.record({ kind: fc.constant("rotate"), at: fc.nat(6) }),
    );
    fc.assert(
      fc.property(fc.array(edit, { maxLength: 6 }), (edits) => {
        let wanted: Json = null;
        const made = record<Doc>(
          STATE,
          (draft) => {
            const { list } = draft;
            for (const step of edits) {
              const {
                id,
                v = 0,
                at = 0,
                remove = 0,
              } = step as { id?: number | null; v?: number; at?: number; remove?: number };
              const item: Item = { id: id == null ? newId() : `i${id}`, v };
              switch (step.kind) {
                case "push":
                  list.push(item);
                  break;
                case "unshift":
                  list.unshift(item);
                  break;
                case "splice":
                  list.splice(at, remove, { id: newId(), v });
                  break;
                case "reverse":
                  list.reverse();
                  break;
                case "rotate":
                  list.push(...list.splice(at, 1));
                  break;
                default: {
                  const element = list[at];
                  if (element) element.v = v;
                }
              }
            }
            wanted = clone(draft);
          },
          newId,
        );
        expect(equal(applyAll(STATE, made), wanted)).toBe(true);
      }),
      { numRuns: 500 },
    );
  });
});
