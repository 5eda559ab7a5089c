/** The session's state as the server makes it (`gaps.py`), and what can be told from it. */

import type { RJSFSchema } from "@rjsf/utils";
import type { DeepReadonly, Json, Operation } from "reattach";

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
  /** What stands in the document. */
  found?: string;
  examples?: string[];
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
  context: {
    kind: string;
    syntax: Syntax;
    document_name: string;
    format: string;
    original: string;
    document: string;
    valid: boolean;
    /** Conflicts that people have settled, by their id. */
    settled?: Record<string, { keep: "kept" | "lost" }>;
  };
}

export type Shown = DeepReadonly<State>;
// The schema is handed on to a library that knows nothing of `readonly`.
export type GapShown = Omit<DeepReadonly<Gap>, "schema"> & { readonly schema: RJSFSchema };
export type AnswerShown = Readonly<Answer>;

export function isOurs(state: Shown): boolean {
  const { gaps_detected, gaps_resolved, user_responses, context } = state;
  return (
    [gaps_detected, gaps_resolved, user_responses].every((list) => Array.isArray(list)) &&
    typeof context?.document === "string"
  );
}

export function answerTo(state: Shown, { id }: GapShown): AnswerShown {
  return (
    state.user_responses.find((one) => one.gap === id) ?? { id, gap: id, draft: "", answer: null }
  );
}

export function gapsOf(state: Shown): readonly GapShown[] {
  return state.gaps_detected as readonly GapShown[];
}

/** What somebody sees of a gap in the list. */
export type Progress = "open" | "begun" | "unchecked" | "wrong" | "resolved";

export function progressOf(gap: GapShown, { draft, answer }: AnswerShown): Progress {
  if (!isBlank(draft) && !same(trimmed(draft), trimmed(answer))) return "begun";
  if (!same(answer, gap.checked)) return "unchecked";
  if (gap.problem === null) return "resolved";
  return answer === null ? "open" : "wrong";
}

/** Makes what is typed the answer; nothing where it is that already. */
export function answering({ id, draft, answer }: AnswerShown): Operation[] {
  const next = isBlank(draft) ? null : (draft as Json);
  return same(next, answer)
    ? []
    : [{ op: "set", path: `/user_responses/#${id}/answer`, value: next }];
}

export function typing({ id, draft }: AnswerShown, value: unknown): Operation[] {
  return same(draft, value)
    ? []
    : [{ op: "set", path: `/user_responses/#${id}/draft`, value: value as Json }];
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
  if (typeof value !== "object") return String(value);
  const parts = Object.values(value).filter((one) => !isBlank(one));
  return parts.map(told).join(Array.isArray(value) ? "\n" : ", ") || "nothing";
}
