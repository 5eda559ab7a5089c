/**
 * Text by Unicode code points, and pending edits carried over what others committed
 * (protocol, section 4, "Text").
 */

/** Where there is none, code points and UTF-16 units are the same: most texts, and their long ones. */
const HIGH = /[\ud800-\udbff]/;

/** `n` code points, as a distance in UTF-16 units from the front; the length where there are fewer. */
function units(text: string, n: number): number {
  if (!HIGH.test(text)) return Math.min(n, text.length);
  let at = 0;
  for (let left = n; left > 0 && at < text.length; left--) {
    at += (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
  }
  return at;
}

/** How many code points a text has. */
export function points(text: string): number {
  if (!HIGH.test(text)) return text.length;
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

/** The text after many splices. Of most, no more than what each puts in has to be looked at. */
export function spliceAll(
  text: string,
  splices: readonly { readonly index: number; readonly delete: number; readonly insert: string }[],
): string {
  let now = text;
  let plain = !HIGH.test(text);
  for (const { index, delete: remove, insert } of splices) {
    plain &&= !HIGH.test(insert);
    now = plain
      ? now.slice(0, index) + insert + now.slice(index + remove)
      : splice(now, index, remove, insert);
  }
  return now;
}

/**
 * The plain edit from one text to another: what lies between their longest common beginning and the
 * longest common end of the rest is removed, and the new text put in.
 */
export function plain(before: string, after: string): Edit[] {
  if (before === after) return [];
  const shorter = Math.min(before.length, after.length);
  let start = 0;
  while (start < shorter && before.charCodeAt(start) === after.charCodeAt(start)) start++;
  // Halves of a surrogate pair can be alike where the code points are not.
  if (start > 0 && isHigh(before.charCodeAt(start - 1))) start--;
  let end = 0;
  while (
    end < shorter - start &&
    before.charCodeAt(before.length - end - 1) === after.charCodeAt(after.length - end - 1)
  ) {
    end++;
  }
  if (end > 0 && isLow(before.charCodeAt(before.length - end))) end--;
  const pos = points(before.slice(0, start));
  const removed = points(before.slice(start, before.length - end));
  return spliced(pos, removed, after.slice(start, after.length - end));
}

/** What a splice does, as edits. */
export function spliced(index: number, remove: number, insert: string): Edit[] {
  const edits: Edit[] = remove > 0 ? [{ pos: index, len: remove }] : [];
  if (insert !== "") edits.push({ pos: index, str: insert, len: points(insert) });
  return edits;
}

/** The same edits, with those put together that go on from one another: typing, and deleting. */
export function joined(edits: readonly Edit[]): Edit[] {
  const list: Edit[] = [];
  for (const edit of edits) {
    const last = list.at(-1);
    const { pos, str, len } = edit;
    if (last?.str !== undefined && str !== undefined && pos === last.pos + last.len) {
      list[list.length - 1] = { pos: last.pos, str: last.str + str, len: last.len + len };
    } else if (
      last &&
      last.str === undefined &&
      str === undefined &&
      (pos === last.pos || pos + len === last.pos)
    ) {
      list[list.length - 1] = { pos, len: last.len + len };
    } else {
      list.push(edit);
    }
  }
  return list;
}

function isHigh(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}

function isLow(unit: number): boolean {
  return unit >= 0xdc00 && unit < 0xe000;
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
  let after = [...first];
  const carried: Edit[] = [];
  for (const edit of then) {
    let moved = [edit];
    const passed: Edit[] = [];
    for (const other of after) {
      const [one, ...more] = moved;
      if (one === undefined) passed.push(other);
      else if (more.length === 0) {
        passed.push(...over(other, one, true));
        moved = over(one, other, false);
      } else {
        const [parts, rest] = carry([other], moved);
        passed.push(...parts);
        moved = rest;
      }
    }
    after = passed;
    carried.push(...moved);
  }
  return [after, carried];
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
