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
  return carry(plain(before, now), spliced(index, remove, insert))[1].map(asSplice);
}

/** Where a position in a text is after the text became another. Text put in at it goes behind it. */
export function carryPosition(position: number, before: string, after: string): number {
  const [start, end] = alike(before, after);
  if (position <= start) return position;
  const rest = before.length - position;
  return rest <= end ? after.length - rest : Math.min(position, after.length - end);
}

function asSplice({ pos, len, str }: Edit): Splice {
  return { index: pos, remove: str === undefined ? len : 0, insert: str ?? "" };
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
