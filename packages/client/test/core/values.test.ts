import { describe, expect, test } from "vitest";
import { clone, equal, freeze, type Json, member } from "../../src/core/json";
import { format, get, parse } from "../../src/core/pointer";

describe("values (protocol, section 2)", () => {
  test("V4: two values are equal when their types and then their values are", () => {
    expect(equal(true, 1)).toBe(false);
    expect(equal(1, 1.0)).toBe(true);
    expect(equal(-0, 0)).toBe(true);
    expect(equal(null, {})).toBe(false);
    expect(equal([], {})).toBe(false);
    expect(equal({ a: 1, b: [2] }, { b: [2], a: 1 })).toBe(true);
    expect(equal({ a: 1 }, { b: 1 })).toBe(false);
    expect(equal("", null)).toBe(false);
    expect(equal(undefined, null)).toBe(false);
  });

  test("equality looks at own members only", () => {
    const proto = JSON.parse('{"__proto__": 1}') as Json;
    expect(equal(proto, {})).toBe(false);
    expect(equal(proto, JSON.parse('{"__proto__": 1}') as Json)).toBe(true);
    expect(equal(JSON.parse('{"toString": 1}') as Json, JSON.parse('{"x": 1}') as Json)).toBe(
      false,
    );
  });

  test.each([
    [Number.NaN, "bad_number"],
    [Number.POSITIVE_INFINITY, "bad_number"],
    ["\ud800", "bad_string"],
    ["a\udc00", "bad_string"],
    [{ "\ud800": 1 }, "bad_string"],
    [new Date(0), "bad_value"],
    [new Map(), "bad_value"],
    [() => 1, "bad_value"],
    [1n, "bad_value"],
    [[undefined], "bad_value"],
    [Symbol("s"), "bad_value"],
  ])("V1, V2, V3: %s is refused with %s", (value, code) => {
    expect(() => clone(value, "/x")).toThrow(expect.objectContaining({ code, path: "/x" }));
  });

  test("V3: what JSON can say is kept as it came, U+0000 included", () => {
    const value = { a: [1, "\0", "😀", null, true, { b: 1e300 }] };
    expect(clone(value)).toEqual(value);
    expect(clone({ gone: undefined, here: 1 })).toEqual({ here: 1 });
    expect(Object.is(clone(-0), 0)).toBe(true);
  });

  test("V5: nesting ends somewhere", () => {
    let deep: Json = 1;
    for (let i = 0; i < 65; i++) deep = [deep];
    expect(() => clone(deep)).toThrow(expect.objectContaining({ code: "too_deep" }));
  });

  test("copies are frozen all the way down and share nothing", () => {
    const value = { a: [{ b: 1 }] };
    const copy = clone(value) as typeof value;
    expect(Object.isFrozen(copy.a[0])).toBe(true);
    value.a.pop();
    expect(copy.a).toHaveLength(1);
    expect(Object.isFrozen(freeze(JSON.parse('{"a":[{}]}')).a[0])).toBe(true);
  });

  test("__proto__ and constructor are keys as any other", () => {
    const copy = clone(JSON.parse('{"__proto__": {"x": 1}, "constructor": 2}')) as Record<
      string,
      Json
    >;
    expect(Object.keys(copy)).toEqual(["__proto__", "constructor"]);
    expect(Object.getPrototypeOf(copy)).toBe(Object.prototype);
    expect(member({}, "constructor")).toBeUndefined();
  });
});

describe("pointers (RFC 6901)", () => {
  test("tokens and pointers are each other's reverse", () => {
    for (const pointer of ["", "/", "/a", "/a~1b/c~0d", "/~01", "//", "/#x", "/0"]) {
      expect(format(parse(pointer))).toBe(pointer);
    }
    expect(parse("/a~1b/~01")).toEqual(["a/b", "~1"]);
  });

  test.each(["a", "#/a", "/~", "/~2"])("%s is none", (pointer) => {
    expect(() => parse(pointer)).toThrow(expect.objectContaining({ code: "bad_path" }));
  });

  test("P1: reads what is there, and nothing from prototypes", () => {
    const state = clone({
      list: [
        { id: "a", n: 1 },
        { id: "a", n: 2 },
      ],
      o: { "#k": 1 },
    });
    expect(get(state, parse("/list/#a/n"))).toBe(1);
    expect(get(state, parse("/o/#k"))).toBe(1);
    expect(get(state, parse("/list/#b/n"))).toBeUndefined();
    expect(get(state, parse("/constructor/name"))).toBeUndefined();
    expect(get(state, parse("/o/#k/x"))).toBeUndefined();
    expect(() => get(state, parse("/list/0"))).toThrow(/expected "#"/);
  });
});
