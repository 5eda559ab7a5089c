/** The session's state as the server makes it (`gaps.py`), and what can be told from it. */

import type { DeepReadonly, Operation, Session, Status } from "reattach";

export type Kind =
  | "text"
  | "long"
  | "list"
  | "number"
  | "url"
  | "email"
  | "date"
  | "choice"
  | "search";

export interface Gap {
  id: string;
  path: string;
  title: string;
  description: string;
  kind: Kind;
  /** What is wrong; null where nothing is. */
  problem: string | null;
  /** The answer that `problem` speaks of. */
  checked: string | null;
  /** What stands in the file. */
  found?: string;
  examples?: string[];
  choices?: string[];
}

export interface Answer {
  id: string;
  gap: string;
  /** What is being typed. */
  draft: string;
  /** What counts; null before anything does. */
  answer: string | null;
}

export interface State {
  current_step: number;
  total_steps: number;
  gaps_detected: Gap[];
  gaps_resolved: { id: string; path: string; title: string; answer: string }[];
  user_responses: Answer[];
  context: {
    document_name: string;
    format: string;
    original: string;
    document: string;
    valid: boolean;
  };
}

export type Shown = DeepReadonly<State>;
export type GapShown = DeepReadonly<Gap>;
export type AnswerShown = DeepReadonly<Answer>;
export type GapSession = Session<State>;

const NO_ANSWER: Omit<AnswerShown, "id" | "gap"> = { draft: "", answer: null };

export function answerTo(state: Shown, gap: GapShown): AnswerShown {
  const { id } = gap;
  return state.user_responses.find((one) => one.gap === id) ?? { id, gap: id, ...NO_ANSWER };
}

/** What somebody sees of a gap in the list. */
export type Progress = "open" | "begun" | "unchecked" | "wrong" | "resolved";

export function progressOf(gap: GapShown, { draft, answer }: AnswerShown): Progress {
  if (draft.trim() !== (answer ?? "").trim() && draft.trim() !== "") return "begun";
  if (answer !== gap.checked) return "unchecked";
  if (gap.problem === null) return "resolved";
  return answer === null ? "open" : "wrong";
}

/** Makes what is typed the answer; nothing where it is that already. */
export function answering({ id, draft, answer }: AnswerShown): Operation[] {
  const next = draft.trim() === "" ? null : draft;
  return next === answer ? [] : [{ op: "set", path: `/user_responses/#${id}/answer`, value: next }];
}

export function typing({ id, draft }: AnswerShown, value: string): Operation[] {
  return draft === value ? [] : [{ op: "set", path: `/user_responses/#${id}/draft`, value }];
}

/** The three words for where one's work is; each says no more than is true. */
export function savedWord(status: Status): "Saved" | "Saved on this device" | "Saving…" {
  if (status.saved) return "Saved";
  return status.savedOnDevice ? "Saved on this device" : "Saving…";
}

export function connectionWord(status: Status): "Online" | "Reconnecting…" | "Offline" {
  switch (status.connection) {
    case "online":
      return "Online";
    case "connecting":
    case "reconnecting":
      return "Reconnecting…";
    default:
      return "Offline";
  }
}
