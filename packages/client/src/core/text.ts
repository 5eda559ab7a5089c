/**
 * Text by Unicode code points, and pending edits carried over what others committed
 * (protocol, section 4, "Text").
 */

/** `n` code points, as a distance in UTF-16 units from the front; the length where there are fewer. */
function units(text: string, n: number): number {
  let at = 0;
  for (let left = n; left > 0 && at < text.length; left--) {
    at += (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
  }
  return at;
}

/** How many code points a text has. */
export function points(text: string): number {
  let n = 0;
  for (let at = 0; at < text.length; n++) at += (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
  return n;
}

/** The text with `remove` code points from `index` replaced. What lies beyond its end is cut off. */
export function splice(text: string, index: number, remove: number, insert: string): string {
  const start = units(text, index);
  const rest = text.slice(start);
  return text.slice(0, start) + insert + rest.slice(units(rest, remove));
}

/** One elementary edit: text put in at `pos`, or `len` code points removed from it. */
export type Edit =
  | { readonly pos: number; readonly str: string; readonly len: number }
  | { readonly pos: number; readonly str?: undefined; readonly len: number };

/**
 * Two sequences of edits of one text, each made without the other, to two that follow each other:
 * `[first', then']` with text·first·then' = text·then·first'. At one position the text of `first`
 * stands left.
 */
export function carry(first: readonly Edit[], then: readonly Edit[]): [Edit[], Edit[]] {
  const [a, ...moreA] = first;
  const [b, ...moreB] = then;
  if (a === undefined || b === undefined) return [[...first], [...then]];
  if (moreA.length === 0 && moreB.length === 0) return [over(a, b, true), over(b, a, false)];
  if (moreB.length > 0) {
    const [once, carried] = carry(first, [b]);
    const [twice, rest] = carry(once, moreB);
    return [twice, [...carried, ...rest]];
  }
  const [once, between] = carry([a], then);
  const [more, carried] = carry(moreA, between);
  return [[...once, ...more], carried];
}

/** `edit` as it reads after `other`; `left`: it stands left of `other` where both put text in. */
function over(edit: Edit, other: Edit, left: boolean): Edit[] {
  const { pos, len } = edit;
  const end = other.pos + other.len;
  if (edit.str !== undefined) {
    if (other.pos > pos || (other.pos === pos && (left || other.str === undefined))) return [edit];
    return [
      {
        ...edit,
        pos: other.str === undefined ? Math.max(other.pos, pos - other.len) : pos + other.len,
      },
    ];
  }
  if (other.str !== undefined) {
    if (other.pos <= pos) return [{ pos: pos + other.len, len }];
    if (other.pos >= pos + len) return [edit];
    const before = other.pos - pos;
    return [
      { pos, len: before },
      { pos: pos + other.len, len: len - before },
    ];
  }
  const before = Math.max(0, Math.min(pos + len, other.pos) - pos);
  const after = Math.max(0, pos + len - Math.max(pos, end));
  if (before + after === 0) return [];
  return [
    { pos: pos <= other.pos ? pos : Math.max(other.pos, pos - other.len), len: before + after },
  ];
}
