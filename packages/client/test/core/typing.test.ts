import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { splice } from "../../src/core/text";
import { carryPosition, carrySplice, type Splice, spliceBetween } from "../../src/core/typing";

const text = fc.string({ unit: "grapheme", maxLength: 12 });
const few = fc.string({ unit: fc.constantFrom("a", "b", "😀", "😁"), maxLength: 8 });

function done(text: string, splices: readonly (Splice | null)[]): string {
  return splices.reduce(
    (now, one) => (one ? splice(now, one.index, one.remove, one.insert) : now),
    text,
  );
}

describe("typing", () => {
  test("what makes one text of another is found, wherever the caret is", () => {
    fc.assert(
      fc.property(few, few, fc.option(fc.nat(8), { nil: undefined }), (before, after, caret) => {
        const at = caret === undefined ? undefined : Math.min(caret, after.length);
        expect(done(before, [spliceBetween(before, after, at)])).toBe(after);
      }),
    );
    expect(spliceBetween("same", "same")).toBeNull();
  });

  test("of letters that are alike the one at the caret was typed, or taken out", () => {
    expect(spliceBetween("aa", "aaa", 1)).toEqual({ index: 0, remove: 0, insert: "a" });
    expect(spliceBetween("aa", "aaa", 2)).toEqual({ index: 1, remove: 0, insert: "a" });
    expect(spliceBetween("aa", "aaa")).toEqual({ index: 2, remove: 0, insert: "a" });
    expect(spliceBetween("aaa", "aa", 1)).toEqual({ index: 1, remove: 1, insert: "" });
    // A caret that has nothing to do with what happened.
    expect(spliceBetween("abc", "axc", 0)).toEqual({ index: 1, remove: 1, insert: "x" });
  });

  test("positions are code points, and no pair is taken apart", () => {
    expect(spliceBetween("😀b", "😀😁b", 4)).toEqual({ index: 1, remove: 0, insert: "😁" });
    expect(spliceBetween("😀", "😁")).toEqual({ index: 0, remove: 1, insert: "😁" });
    // The low halves of these two are the same.
    expect(spliceBetween("\u{1F600}", "\u{1FA00}")).toEqual({
      index: 0,
      remove: 1,
      insert: "\u{1FA00}",
    });
  });

  test("a splice over what others have done keeps every letter of both", () => {
    expect(done("abcXY", carrySplice({ index: 3, remove: 0, insert: "d" }, "abc", "abcXY"))).toBe(
      "abcXYd",
    );
    // What others put in, in the middle of what is taken out here, stays.
    expect(done("abXc", carrySplice({ index: 1, remove: 2, insert: "" }, "abc", "abXc"))).toBe(
      "aX",
    );
    fc.assert(
      fc.property(text, text, fc.nat(20), (before, now, at) => {
        const here = carrySplice({ index: at % 5, remove: 0, insert: "|" }, before, now);
        expect(done(now, here).replace("|", "")).toBe(now.replace("|", ""));
      }),
    );
  });

  test("a caret stays between the letters that it is between", () => {
    expect(carryPosition(1, "ab", "aXb")).toBe(1);
    expect(carryPosition(2, "ab", "Xab")).toBe(3);
    expect(carryPosition(2, "ab", "aXb")).toBe(3);
    expect(carryPosition(3, "abcd", "ad")).toBe(1);
    expect(carryPosition(2, "abcd", "aXXXd")).toBe(1);
    const lower = fc.string({ unit: fc.constantFrom("a", "b", "😀"), minLength: 1, maxLength: 8 });
    const upper = fc.string({ unit: fc.constantFrom("X", "😁"), maxLength: 4 });
    fc.assert(
      fc.property(lower, upper, fc.nat(8), fc.nat(8), (before, put, caret, place) => {
        const letters = [...before];
        const offset = (n: number) => letters.slice(0, n).join("").length;
        const after = `${before.slice(0, offset(place))}${put}${before.slice(offset(place))}`;
        const at = offset(caret);
        const moved = offset(place) < at ? at + put.length : at;
        expect(carryPosition(at, before, after)).toBe(moved);
      }),
    );
  });

  test("a caret stays between its letters also where others have been at several places", () => {
    const before = "Reads tide gauges, and tells when the water comes.";
    const after = "It reads tide gauges, tells when the 🌊 water comes";
    for (const word of ["tide", "gauges", "tells", "water", "comes"]) {
      const at = before.indexOf(word) + 2;
      expect(carryPosition(at, before, after)).toBe(after.indexOf(word) + 2);
      const typed = { index: at, remove: 0, insert: "|" };
      expect(done(after, carrySplice(typed, before, after))).toBe(
        after.replace(word, `${word.slice(0, 2)}|${word.slice(2)}`),
      );
    }
    const lower = fc.array(fc.constantFrom("a", "b", "😀"), { maxLength: 12 });
    const upper = fc.array(fc.tuple(fc.nat(12), fc.constantFrom("X", "Y", "😁")), { maxLength: 6 });
    fc.assert(
      fc.property(lower, upper, fc.nat(12), (letters, puts, caret) => {
        const at = Math.min(caret, letters.length);
        const parts = letters.map((one) => ({ one, left: "" }));
        let end = "";
        for (const [place, put] of puts) {
          const part = parts[place];
          if (part) part.left += put;
          else end += put;
        }
        const after = parts.map(({ one, left }) => left + one).join("") + end;
        const moved = carryPosition(letters.slice(0, at).join("").length, letters.join(""), after);
        // Right behind the letter that it was behind.
        const behind = parts.slice(0, at).map(({ one, left }) => left + one);
        expect(moved).toBe(behind.join("").length);
      }),
    );
  });

  test("texts that have nothing to do with each other take no time", () => {
    const [before, after] = ["ab".repeat(50_000), "XY".repeat(60_000)];
    expect(carryPosition(60_000, `(${before})`, `(${after})`)).toBe(1);
  });
});
