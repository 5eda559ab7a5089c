import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { carry, type Edit, joined, plain, points, splice } from "../../src/core/text";

function applyEdits(text: string, edits: readonly Edit[]): string {
  return edits.reduce((now, { pos, str, len }) => {
    return splice(now, pos, str === undefined ? len : 0, str ?? "");
  }, text);
}

/** Edits that fit a text, each the one that the former left. */
function fitting(text: string, seeds: readonly [number, number, string][]): Edit[] {
  let now = text;
  return seeds.map(([where, length, str]) => {
    const size = points(now);
    const pos = where % (size + 1);
    const edit: Edit =
      length === 0 ? { pos, str, len: points(str) } : { pos, len: Math.min(length, size - pos) };
    now = applyEdits(now, [edit]);
    return edit;
  });
}

const seeds = fc.array(
  fc.tuple(fc.nat(12), fc.nat(4), fc.string({ unit: "grapheme", maxLength: 3 })),
  { maxLength: 4 },
);

describe("text (protocol, section 4)", () => {
  test("positions are code points", () => {
    expect(points("a😀b")).toBe(3);
    expect(splice("a😀b", 1, 1, "xy")).toBe("axyb");
    expect(splice("ab", 9, 9, "c")).toBe("abc");
  });

  test("two sequences of edits end as one text, whichever came first", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme", maxLength: 8 }), seeds, seeds, (text, a, b) => {
        const first = fitting(text, a);
        const then = fitting(text, b);
        const [after, carried] = carry(first, then);
        expect(applyEdits(applyEdits(text, first), carried)).toBe(
          applyEdits(applyEdits(text, then), after),
        );
      }),
      { numRuns: 2_000 },
    );
  });

  test("at one position the text committed first stands left", () => {
    const [, carried] = carry([{ pos: 1, str: "A", len: 1 }], [{ pos: 1, str: "B", len: 1 }]);
    expect(applyEdits("x", [{ pos: 1, str: "A", len: 1 }, ...carried])).toBe("xAB");
  });

  test("text put into a range that is being removed stays", () => {
    const [, carried] = carry([{ pos: 2, str: "NEW", len: 3 }], [{ pos: 0, len: 4 }]);
    expect(applyEdits("abNEWcd", carried)).toBe("NEW");
  });

  test("edits that go on from one another carry as one", () => {
    expect(joined([1, 2, 3].map((pos) => ({ pos, str: "x", len: 1 })))).toEqual([
      { pos: 1, str: "xxx", len: 3 },
    ]);
    expect(joined([5, 4, 4].map((pos) => ({ pos, len: 1 })))).toEqual([{ pos: 4, len: 3 }]);
    fc.assert(
      fc.property(fc.string({ unit: "grapheme", maxLength: 8 }), seeds, seeds, (text, a, b) => {
        const first = fitting(text, a);
        const then = fitting(text, b);
        const before = applyEdits(text, first);
        expect(applyEdits(text, joined(first))).toBe(before);
        const [, carried] = carry(joined(first), then);
        expect(applyEdits(before, carried)).toBe(applyEdits(before, carry(first, then)[1]));
      }),
      { numRuns: 2_000 },
    );
  });

  test("a plain edit lies between the longest common beginning and end", () => {
    expect(plain("aXbc", "aYbc")).toEqual([
      { pos: 1, len: 1 },
      { pos: 1, str: "Y", len: 1 },
    ]);
    expect(plain("aa", "aaa")).toEqual([{ pos: 2, str: "a", len: 1 }]);
    expect(plain("aaa", "aa")).toEqual([{ pos: 2, len: 1 }]);
    expect(plain("same", "same")).toEqual([]);
  });

  test("halves of a surrogate pair are neither", () => {
    // The first two share their first halves, the first and the last their second.
    const unit = fc.constantFrom("\u{1F600}", "\u{1F601}", "\u{1FA00}", "a");
    const text = fc.string({ unit, maxLength: 5 });
    expect(plain("\u{1F600}", "\u{1F601}")).toEqual([
      { pos: 0, len: 1 },
      { pos: 0, str: "\u{1F601}", len: 1 },
    ]);
    fc.assert(
      fc.property(text, text, (before, after) => {
        const edits = plain(before, after);
        expect(applyEdits(before, edits)).toBe(after);
        for (const { str } of edits)
          expect(str ?? "").not.toMatch(/^[\uDC00-\uDFFF]|[\uD800-\uDBFF]$/);
      }),
    );
  });
});
