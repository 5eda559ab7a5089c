/** The session's state as the server makes it (`gaps.py`), and what can be told from it. */

import type { RJSFSchema } from "@rjsf/utils";
import type { Conflict, DeepReadonly, Json, Operation, Session } from "reattach";
import { carrySplice, spliceBetween } from "reattach/form";

export type FieldKind =
  | "text"
  | "long"
  | "list"
  | "number"
  | "url"
  | "email"
  | "date"
  | "choice"
  | "search"
  | "form"
  | "removal";

// Answers are JSON of any kind: `unknown`, since a type that contains itself has no end as a draft.

export interface Gap {
  id: string;
  path: string;
  title: string;
  description: string;
  kind: FieldKind;
  /** What its form is made from. */
  schema: object;
  /** What is wrong; null where nothing is. */
  problem: string | null;
  /** The answer that `problem` speaks of. */
  checked: unknown;
  /** The document may do without. */
  optional?: boolean;
  /** What stands in the document; null where nothing does. */
  found?: string | null;
  examples?: string[] | null;
}

export interface Answer {
  id: string;
  gap: string;
  /** What is being typed. */
  draft: unknown;
  /** What counts; null before anything does. */
  answer: unknown;
}

export type Syntax = "yaml" | "toml" | "json";

export interface State {
  current_step: number;
  total_steps: number;
  gaps_detected: Gap[];
  gaps_resolved: { id: string; path: string; title: string; answer: unknown }[];
  user_responses: Answer[];
  /** Missing in sessions that are older than it. */
  notes?: string;
  context: {
    kind: string;
    syntax: Syntax;
    document_name: string;
    format: string;
    original: string;
    document: string;
    valid: boolean;
  };
}

export type Shown = DeepReadonly<State>;
// The schema is handed on to a library that knows nothing of `readonly`.
export type GapShown = Omit<DeepReadonly<Gap>, "schema"> & { readonly schema: RJSFSchema };
/** What somebody has said to a gap so far: `content` is the draft without what only typing needs. */
export type AnswerShown = Readonly<Answer> & { readonly content: unknown };

export function isOurs(state: Shown): boolean {
  const { gaps_detected, gaps_resolved, user_responses, context } = state;
  return (
    [gaps_detected, gaps_resolved, user_responses].every((list) => Array.isArray(list)) &&
    typeof context?.document === "string"
  );
}

export function answerTo(state: Shown, gap: GapShown): AnswerShown {
  const { id } = gap;
  const found = state.user_responses.find((one) => one.gap === id);
  const answer = found ?? { id, gap: id, draft: "", answer: null };
  return { ...answer, content: contentOf(gap, answer) };
}

function contentOf(gap: GapShown, { draft, answer }: Readonly<Answer>): unknown {
  if (isChoice(gap)) return answer ?? draft;
  if (!hasIds(gap) || !Array.isArray(draft)) return draft;
  return draft.map((one) => (isObject(one) ? omit(one, "id") : one));
}

/** Answered by one press: there is no draft of it. */
export function isChoice({ kind }: GapShown): boolean {
  return kind === "choice" || kind === "removal";
}

/** Whether its elements get ids while they are typed into, so that several people can. */
function hasIds({ kind, schema }: GapShown): boolean {
  const { items } = schema;
  if (kind !== "form" || !isObject(items)) return false;
  return isObject(items.properties) && !("id" in items.properties);
}

/** Where the answer to a gap stands in the state. */
export function pathOf({ id }: { id: string }): string {
  return `/user_responses/#${escaped(id)}`;
}

function escaped(token: string): string {
  return token.replaceAll("~", "~0").replaceAll("/", "~1");
}

/** The value at a path, undefined where there is none. */
export function valueAt(state: Shown, path: string): unknown {
  let value: unknown = state;
  for (const part of path.split("/").slice(1)) {
    const token = part.replaceAll("~1", "/").replaceAll("~0", "~");
    if (Array.isArray(value)) value = value.find((one) => `#${one?.id}` === token);
    else value = isObject(value) ? value[token] : undefined;
  }
  return value;
}

export function gapsOf(state: Shown): readonly GapShown[] {
  return state.gaps_detected as readonly GapShown[];
}

/** What somebody sees of a gap in the list. */
export type Progress = "open" | "optional" | "begun" | "unchecked" | "wrong" | "resolved";

export function progressOf(gap: GapShown, { content, answer }: AnswerShown): Progress {
  if (!isBlank(content) && !same(trimmed(content), trimmed(answer))) return "begun";
  if (!same(answer, gap.checked)) return "unchecked";
  if (gap.problem === null) return gap.optional && answer === null ? "optional" : "resolved";
  return answer === null ? "open" : "wrong";
}

/** Makes what is typed the answer; nothing where it is that already. */
export function answering(answer: AnswerShown): Operation[] {
  return choosing(answer, isBlank(answer.content) ? null : answer.content);
}

/** What going on makes of what is typed: nothing while people are asked which answer shall stand. */
export function goingOn(session: Session<State>, gap: GapShown): Operation[] {
  return isAsked(session.conflicts, gap) ? [] : answering(answerTo(session.state, gap));
}

/** Whether two answers wait for somebody to choose. */
export function isAsked(conflicts: readonly Conflict[], gap: GapShown): boolean {
  const path = `${pathOf(gap)}/answer`;
  return conflicts.some((one) => one.status === "open" && one.path === path);
}

/** Makes a value the answer. */
export function choosing({ id, answer }: AnswerShown, value: unknown): Operation[] {
  const path = `${pathOf({ id })}/answer`;
  return same(value, answer) ? [] : [{ op: "set", path, value: value as Json }];
}

/** Puts a whole value in place of what is typed, in a form only where it differs. */
export function drafting({ id, draft }: AnswerShown, value: unknown): Operation[] {
  return differences(`${pathOf({ id })}/draft`, draft, value);
}

function differences(path: string, before: unknown, after: unknown): Operation[] {
  if (same(before, after)) return [];
  if (isObject(before) && isObject(after)) {
    const gone = Object.keys(before).filter((name) => after[name] === undefined);
    return [
      ...gone.map((name): Operation => ({ op: "unset", path: `${path}/${escaped(name)}` })),
      ...Object.keys(after).flatMap((name) =>
        after[name] === undefined
          ? []
          : differences(`${path}/${escaped(name)}`, before[name], after[name]),
      ),
    ];
  }
  if (isIdentified(before) && Array.isArray(after)) {
    const left = new Set(after.map((one) => one?.id));
    const known = new Map(before.map((one) => [one.id, one]));
    return [
      ...before.flatMap(({ id }): Operation[] =>
        left.has(id) ? [] : [{ op: "unset", path: `${path}/#${escaped(id)}` }],
      ),
      ...after.flatMap((one): Operation[] =>
        known.has(one?.id)
          ? differences(`${path}/#${escaped(one.id)}`, known.get(one.id), one)
          : [{ op: "insert", path, value: (one ?? {}) as Json }],
      ),
    ];
  }
  return [{ op: "set", path, value: after as Json }];
}

/** A place within a draft, as the form knows it. */
export type Place = readonly (string | number)[];

/**
 * What somebody has typed into a text within a draft, as edits that others' edits do not disturb;
 * null where there is none to be edited. `before` is what their field showed.
 */
export function typing(
  { id, draft }: AnswerShown,
  place: Place,
  [before, after, caret]: readonly [before: string, after: string, caret: number],
): Operation[] | null {
  const splice = spliceBetween(before, after, caret);
  if (splice === null) return [];
  const ops: Operation[] = [];
  let path = `${pathOf({ id })}/draft`;
  let value = draft;
  for (const token of place) {
    if (typeof token === "number") {
      const one: unknown = isIdentified(value) ? value[token] : undefined;
      if (!isObject(one)) return null;
      path += `/#${escaped(String(one.id))}`;
      value = one;
    } else {
      if (value === undefined) ops.push({ op: "set", path, value: {} });
      else if (!isObject(value)) return null;
      path += `/${escaped(token)}`;
      value = value?.[token];
    }
  }
  if (value !== undefined && typeof value !== "string") return null;
  const edits = carrySplice(splice, before, value ?? "");
  return [...ops, ...edits.map((edit) => splicing(path, edit))];
}

/** What somebody has typed into the notes. */
export function noting(
  notes: string,
  [before, after, caret]: readonly [before: string, after: string, caret: number],
): Operation[] {
  const splice = spliceBetween(before, after, caret);
  return splice ? carrySplice(splice, before, notes).map((edit) => splicing("/notes", edit)) : [];
}

function splicing(
  path: string,
  { index, remove, insert }: { index: number; remove: number; insert: string },
): Operation {
  return { op: "splice", path, index, delete: remove, insert };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isIdentified(value: unknown): value is readonly { id: string }[] {
  return Array.isArray(value) && value.every((one) => isObject(one) && typeof one.id === "string");
}

function omit(value: Record<string, unknown>, name: string): Record<string, unknown> {
  return Object.fromEntries(Object.entries(value).filter(([key]) => key !== name));
}

/** Nothing but space, or made of nothing else. */
export function isBlank(value: unknown): boolean {
  if (value === null || value === undefined) return true;
  if (typeof value === "string") return value.trim() === "";
  return typeof value === "object" && Object.values(value).every(isBlank);
}

export function same(one: unknown, other: unknown): boolean {
  return one === other || JSON.stringify(one) === JSON.stringify(other);
}

function trimmed(value: unknown): unknown {
  return typeof value === "string" ? value.trim() : value;
}

/** A value in words, as far as it has any. */
export function told(value: unknown): string {
  if (value === null || value === undefined) return "nothing";
  if (typeof value === "string") return value;
  if (typeof value === "boolean") return value ? "Yes" : "No";
  if (typeof value !== "object") return String(value);
  const parts = Object.values(value).filter((one) => !isBlank(one));
  return parts.map(told).join(Array.isArray(value) ? "\n" : ", ") || "nothing";
}
