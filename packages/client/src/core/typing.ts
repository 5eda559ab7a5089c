/**
 * Text fields of a page on a text that others edit too: what somebody has typed as a splice, and
 * where the caret goes when others have. Splices count code points, positions in fields UTF-16 units.
 */

import { carry, type Edit, plain, points, spliced } from "./text.js";

/** Text taken out at `index`, and other text put in there: what `session.splice` takes. */
export interface Splice {
  readonly index: number;
  readonly remove: number;
  readonly insert: string;
}

/**
 * What makes one text of another, null where they are the same. `caret`, where the field's selection
 * ends after it, says which of several alike letters was typed.
 */
export function spliceBetween(before: string, after: string, caret?: number): Splice | null {
  if (before === after) return null;
  const [start, end] = alike(before, after, caret);
  return {
    index: points(before.slice(0, start)),
    remove: points(before.slice(start, before.length - end)),
    insert: after.slice(start, after.length - end),
  };
}

/** A splice of `before`, as splices of what others have made of that meanwhile, one after another. */
export function carrySplice(splice: Splice, before: string, now: string): Splice[] {
  if (before === now) return [splice];
  const { index, remove, insert } = splice;
  return carry(changes(before, now), spliced(index, remove, insert))[1].map(asSplice);
}

/** Where a position in a text is after the text became another. Text put in at it goes behind it. */
export function carryPosition(position: number, before: string, after: string): number {
  let at = points(before.slice(0, position));
  for (const { pos, len, str } of changes(before, after)) {
    if (at <= pos) continue;
    at = str === undefined ? Math.max(pos, at - len) : at + len;
  }
  return [...after].slice(0, at).join("").length;
}

function asSplice({ pos, len, str }: Edit): Splice {
  return { index: pos, remove: str === undefined ? len : 0, insert: str ?? "" };
}

/** Texts that differ in more letters than this have little to do with each other. */
const MOST = 400;

/**
 * What has become of a text, place by place: others may have been at several since it was last seen.
 * The shortest way (Myers, "An O(ND) Difference Algorithm and Its Variations", 1986), within what
 * lies between a common beginning and end.
 */
function changes(before: string, after: string): readonly Edit[] {
  const whole = plain(before, after);
  const [first] = whole;
  // Only taken out, or only put in: that is one place.
  if (whole.length < 2 || first === undefined) return whole;
  const a = [...before].slice(first.pos, first.pos + first.len);
  const b = [...(whole[1]?.str ?? "")];
  const path = shortest(a, b);
  if (path === null) return whole;
  const edits: Edit[] = [];
  let pos = first.pos;
  let [x, y] = [0, 0];
  for (const [nextX, nextY] of path) {
    // Each step of the path is one letter less, or one more, and then letters that are the same.
    if (nextX - x > nextY - y) edits.push({ pos, len: 1 });
    else if (nextX - x < nextY - y) edits.push({ pos: pos++, str: b[y] ?? "", len: 1 });
    pos += Math.min(nextX - x, nextY - y);
    [x, y] = [nextX, nextY];
  }
  return edits;
}

type Point = readonly [x: number, y: number];

/** The ends of the steps from one sequence to the other; null where there are too many of them. */
function shortest(a: readonly string[], b: readonly string[]): Point[] | null {
  const furthest: Map<number, number>[] = [];
  let reached = new Map([[1, 0]]);
  for (let d = 0; d <= MOST; d++) {
    const next = new Map<number, number>();
    for (let k = -d; k <= d; k += 2) {
      const [down, right] = [reached.get(k + 1) ?? -1, reached.get(k - 1) ?? -1];
      let x = k === -d || (k !== d && right < down) ? down : right + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      next.set(k, x);
      if (x >= a.length && x - k >= b.length) return back([...furthest, next], k);
    }
    furthest.push(next);
    reached = next;
  }
  return null;
}

function back(furthest: readonly ReadonlyMap<number, number>[], last: number): Point[] {
  const path: Point[] = [];
  let k = last;
  for (let d = furthest.length - 1; d >= 0; d--) {
    const x = furthest[d]?.get(k) ?? 0;
    path.unshift([x, x - k]);
    const before = furthest[d - 1];
    const [down, right] = [before?.get(k + 1) ?? -1, before?.get(k - 1) ?? -1];
    k += k === -d || (k !== d && right < down) ? 1 : -1;
  }
  return path;
}

/** How much two texts have in common at their beginning and at the end of the rest; no half pair. */
function alike(before: string, after: string, caret?: number): [start: number, end: number] {
  const shorter = Math.min(before.length, after.length);
  const known =
    caret !== undefined && after.length - caret <= shorter && before.endsWith(after.slice(caret));
  const most = known ? shorter - (after.length - caret) : shorter;
  let start = 0;
  while (start < most && before[start] === after[start]) start++;
  if (start > 0 && isHigh(before.charCodeAt(start - 1))) start--;
  let end = 0;
  const left = shorter - start;
  while (end < left && before[before.length - end - 1] === after[after.length - end - 1]) end++;
  if (end > 0 && isLow(before.charCodeAt(before.length - end))) end--;
  return [start, end];
}

function isHigh(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}

function isLow(unit: number): boolean {
  return unit >= 0xdc00 && unit < 0xe000;
}
