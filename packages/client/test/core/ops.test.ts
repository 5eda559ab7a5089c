import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { clone, type Json } from "../../src/core/json";
import { apply, applyInTurn, applyLoosely, checkReach, prepare } from "../../src/core/ops";
import type { Operation } from "../../src/core/wire";

const STATE = clone({
  title: "a😀b",
  n: 1,
  flag: true,
  list: [
    { id: "x", v: 1 },
    { id: "y", v: 2 },
    { id: "z", v: 3 },
  ],
  tags: ["p"],
  deep: { er: { k: 1 } },
});

const ids = (state: Json) =>
  (state as { list: { id: string }[] }).list.map(({ id }) => id).join("");

function at(operation: Operation): Record<string, unknown> {
  return apply(STATE, operation) as Record<string, unknown>;
}

describe("operations (protocol, section 3)", () => {
  test("O1: set creates or replaces, shares the rest and leaves the old state alone", () => {
    const next = at({ op: "set", path: "/deep/er/k", value: 2 });
    expect(next.deep).toEqual({ er: { k: 2 } });
    expect(next.list).toBe((STATE as Record<string, unknown>).list);
    expect(STATE).toMatchObject({ deep: { er: { k: 1 } } });
    expect(Object.isFrozen(next) && Object.isFrozen(next.deep)).toBe(true);
    expect(at({ op: "set", path: "/new", value: null })).toHaveProperty("new", null);
    expect(apply(STATE, { op: "set", path: "", value: { only: 1 } })).toEqual({ only: 1 });
  });

  test("O1: set of an element keeps its id, and puts back one that is gone", () => {
    expect(at({ op: "set", path: "/list/#y", value: { id: "y", v: 9 } }).list).toContainEqual({
      id: "y",
      v: 9,
    });
    expect(ids(at({ op: "set", path: "/list/#q", value: { id: "q" } }) as Json)).toBe("xyzq");
  });

  test("__proto__ is a key as any other", () => {
    const next = at({ op: "set", path: "/__proto__", value: { polluted: true } });
    expect(Object.hasOwn(next, "__proto__")).toBe(true);
    expect(Object.getPrototypeOf(next)).toBe(Object.prototype);
    expect({}).not.toHaveProperty("polluted");
    const gone = apply(next as Json, { op: "unset", path: "/__proto__" });
    expect(Object.hasOwn(gone as object, "__proto__")).toBe(false);
    expect(() => at({ op: "set", path: "/constructor/x", value: 1 })).toThrow(/parent exists/);
  });

  test("O2: unset removes a key or an element; of something gone, nothing", () => {
    expect(at({ op: "unset", path: "/n" })).not.toHaveProperty("n");
    expect(ids(at({ op: "unset", path: "/list/#y" }) as Json)).toBe("xz");
    expect(at({ op: "unset", path: "/list/#q/v" })).toBe(STATE);
    expect(at({ op: "unset", path: "/q/r" })).toBe(STATE);
  });

  test("O3: insert: after an id, at the front, at the end; where `after` is gone, at the end", () => {
    const value = { id: "n" };
    expect(ids(at({ op: "insert", path: "/list", value, after: "x" }) as Json)).toBe("xnyz");
    expect(ids(at({ op: "insert", path: "/list", value, after: null }) as Json)).toBe("nxyz");
    expect(ids(at({ op: "insert", path: "/list", value }) as Json)).toBe("xyzn");
    expect(ids(at({ op: "insert", path: "/list", value, after: "q" }) as Json)).toBe("xyzn");
  });

  test("O3: insert of an id that is there is a set of that element", () => {
    const next = at({ op: "insert", path: "/list", value: { id: "y", v: 9 }, after: null });
    expect(next.list).toEqual([
      { id: "x", v: 1 },
      { id: "y", v: 9 },
      { id: "z", v: 3 },
    ]);
  });

  test("O4: move within the list; of a gone element, nothing", () => {
    expect(ids(at({ op: "move", path: "/list/#x", after: "z" }) as Json)).toBe("yzx");
    expect(ids(at({ op: "move", path: "/list/#z", after: null }) as Json)).toBe("zxy");
    expect(ids(at({ op: "move", path: "/list/#x" }) as Json)).toBe("yzx");
    expect(ids(at({ op: "move", path: "/list/#x", after: "gone" }) as Json)).toBe("yzx");
    expect(at({ op: "move", path: "/list/#q", after: null })).toBe(STATE);
    expect(at({ op: "move", path: "/list/#x", after: "x" })).toBe(STATE);
  });

  test("O5: inc adds; a missing number counts as 0", () => {
    expect(at({ op: "inc", path: "/n", by: 2 }).n).toBe(3);
    expect(at({ op: "inc", path: "/m", by: 2 }).m).toBe(2);
  });

  test("O6: splice edits text by code points; a missing text counts as empty", () => {
    expect(at({ op: "splice", path: "/title", index: 2, delete: 1, insert: "c" }).title).toBe(
      "a😀c",
    );
    expect(at({ op: "splice", path: "/title", index: 1, delete: 1, insert: "" }).title).toBe("ab");
    expect(at({ op: "splice", path: "/new", index: 0, delete: 0, insert: "x" }).new).toBe("x");
  });

  test("O7: test sees the effect of earlier operations in its change", () => {
    const ops: Operation[] = [
      { op: "set", path: "/n", value: 5 },
      { op: "test", path: "/n", value: 5 },
    ];
    expect(applyLoosely(STATE, ops)).toHaveProperty("n", 5);
    expect(applyLoosely(STATE, [...ops, { op: "test", path: "/n", value: true }])).toBe(STATE);
  });

  test("restore, resolve and end are the server's to carry out", () => {
    expect(at({ op: "restore", version: 3 })).toBe(STATE);
    expect(at({ op: "resolve", conflict_id: "c", keep: "lost" })).toBe(STATE);
    expect(at({ op: "end" })).toBe(STATE);
  });

  test.each<[Operation, string]>([
    [{ op: "set", path: "/q/r", value: 1 }, "bad_path"],
    [{ op: "set", path: "/n/r", value: 1 }, "bad_path"],
    [{ op: "set", path: "/list/0", value: 1 }, "bad_path"],
    [{ op: "set", path: "/list/#x", value: { id: "y" } }, "bad_id"],
    [{ op: "set", path: "/list/#x/id", value: "y" }, "bad_id"],
    [{ op: "unset", path: "/list/#x/id" }, "bad_id"],
    [{ op: "set", path: "", value: [] }, "bad_value"],
    [{ op: "unset", path: "" }, "bad_path"],
    [{ op: "insert", path: "/n", value: 1 }, "not_a_list"],
    [{ op: "move", path: "/deep/er", after: null }, "not_a_list"],
    [{ op: "inc", path: "/flag", by: 1 }, "not_a_number"],
    [{ op: "inc", path: "/list/#q", by: 1 }, "bad_path"],
    [{ op: "splice", path: "/n", index: 0, delete: 0, insert: "" }, "not_a_string"],
    [{ op: "splice", path: "/list/#q", index: 0, delete: 0, insert: "" }, "not_a_string"],
    [{ op: "test", path: "/n", value: 2 }, "test_failed"],
    [{ op: "nonsense" } as never, "bad_op"],
  ])("O9: %j is refused with %s", (operation, code) => {
    expect(() => apply(STATE, operation)).toThrow(expect.objectContaining({ code }));
  });

  test("of a pending change, what still makes sense is shown", () => {
    const next = applyLoosely(STATE, [
      { op: "set", path: "/gone/deeper", value: 1 },
      { op: "set", path: "/n", value: 2 },
    ]);
    expect(next).toHaveProperty("n", 2);
  });

  test("O6: a splice must lie within the text as its author saw it", () => {
    const splice = (index: number, remove: number): Operation => ({
      op: "splice",
      path: "/title",
      index,
      delete: remove,
      insert: "",
    });
    expect(() => checkReach(STATE, splice(2, 1))).not.toThrow();
    expect(() => checkReach(STATE, splice(2, 2))).toThrow(/within the text of 3 code points/);
  });
});

describe("operations before they are stored", () => {
  let n = 0;
  const newId = () => `id-${++n}`;

  test("P3: an inserted object without an id gets one", () => {
    const [operation] = prepare([{ op: "insert", path: "/list", value: { a: 1 } }], newId);
    expect(operation).toEqual({ op: "insert", path: "/list", value: { id: "id-1", a: 1 } });
    const [text] = prepare([{ op: "insert", path: "/tags", value: "x" }], newId);
    expect(text).toEqual({ op: "insert", path: "/tags", value: "x" });
  });

  test("O9: restore, resolve and end stand alone", () => {
    expect(() => prepare([{ op: "end" }, { op: "unset", path: "/n" }], newId)).toThrow(/alone/);
  });

  test.each<[unknown, string]>([
    [{ op: "set", path: "/n", value: Number.NaN }, "bad_number"],
    [{ op: "set", path: "n", value: 1 }, "bad_path"],
    [{ op: "splice", path: "/n", index: -1, delete: 0, insert: "" }, "bad_op"],
    [{ op: "splice", path: "/n", index: 0.5, delete: 0, insert: "" }, "bad_op"],
    [{ op: "splice", path: "/n", index: 0, delete: 0, insert: 1 }, "bad_op"],
    [{ op: "inc", path: "/n", by: "1" }, "bad_op"],
  ])("%j is refused with %s", (operation, code) => {
    expect(() => prepare([operation as Operation], newId)).toThrow(
      expect.objectContaining({ code }),
    );
  });
});

test("changes applied in turn end as one by one, whatever was typed into what", () => {
  const state = clone({ t: "a😀b", u: "", n: 1, list: [{ id: "e", v: "x" }, "text"], id: "i" });
  const paths = [
    "/t",
    "/u",
    "/n",
    "/none",
    "/none/below",
    "/list/#e/v",
    "/list/#e/id",
    "/id",
    "/list/0",
  ];
  const typed = fc.record({
    op: fc.constant("splice" as const),
    path: fc.constantFrom(...paths),
    index: fc.nat(4),
    delete: fc.nat(3),
    insert: fc.constantFrom("", "c", "dd", "😁", "\ud83d"),
  });
  const other = fc.constantFrom<Operation>(
    { op: "unset", path: "/t" },
    { op: "set", path: "/t", value: "new" },
    { op: "unset", path: "/list/#e" },
    { op: "test", path: "/n", value: 2 },
  );
  const change = fc.oneof(
    { arbitrary: fc.array(typed, { minLength: 1, maxLength: 2 }), weight: 9 },
    { arbitrary: fc.array(fc.oneof(typed, other), { maxLength: 3 }), weight: 1 },
  );
  fc.assert(
    fc.property(fc.array(change, { maxLength: 12 }), (changes) => {
      const one = changes.reduce<Json>((shown, ops) => applyLoosely(shown, ops), state);
      expect(applyInTurn(state, changes)).toEqual(one);
    }),
    { numRuns: 500 },
  );
});
