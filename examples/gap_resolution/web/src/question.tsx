/** One gap: what is asked, what stands there, its form, and what the server said of the answer. */

import { type FormEvent, type KeyboardEvent, memo } from "react";
import type { Status } from "reattach";
import { useConflicts, useSession, useStatus } from "reattach-react";
import { ANSWER, GapForm, type GapFormProps } from "./form";
import { afterPress } from "./pointer";
import {
  answering,
  answerTo,
  choosing,
  drafting,
  type GapShown,
  gapsOf,
  goingOn,
  isAsked,
  isBlank,
  isChoice,
  type Progress,
  progressOf,
  type Shown,
  type State,
  typing,
} from "./state";

export interface QuestionProps {
  gap: GapShown;
  step: number;
  steps: number;
  /** Somebody types here: not the moment to be led away. */
  onType(): void;
  goTo(step: number): void;
}

export const Question = memo(function Question(props: QuestionProps) {
  const { gap, step, steps, onType, goTo } = props;
  const session = useSession<State>();
  const answer = useSession((state: Shown) => answerTo(state, gap), sameAnswer);
  const status = useStatus();
  const asked = isAsked(useConflicts(), gap);
  const progress = progressOf(gap, answer);
  const now = () => answerTo(session.state, gap);

  const edited: GapFormProps["edited"] = (place, ...typed) => {
    const ops = typing(now(), place, typed);
    if (ops === null) return false;
    onType();
    session.change(ops);
    return true;
  };
  const type = (value: unknown) => {
    onType();
    session.change(isChoice(gap) ? choosing(now(), value) : drafting(now(), value));
  };
  const settle = () => void session.change(answering(now()));
  const leave = () => afterPress(() => void session.change(goingOn(session, gap)));
  const submit = (event: FormEvent) => {
    event.preventDefault();
    goTo(step + 1);
  };
  const keys = (event: KeyboardEvent) => {
    const { key, ctrlKey, metaKey, nativeEvent, target } = event;
    if (key !== "Enter" || nativeEvent.isComposing) return;
    // In a text of several lines, and on a choice, Enter has another meaning or none.
    const several = target instanceof HTMLTextAreaElement;
    const radio = target instanceof HTMLInputElement && target.type === "radio";
    if (radio || (several && (ctrlKey || metaKey))) submit(event);
  };
  const mend = isBlank(answer.content) && MENDABLE.has(gap.kind) ? (gap.found ?? null) : null;

  return (
    <form
      className="question"
      id="question"
      noValidate
      aria-labelledby="title"
      onSubmit={submit}
      onKeyDown={keys}
    >
      <p className="eyebrow">
        Gap {step + 1} of {steps}
      </p>
      <h2 id="title" tabIndex={-1}>
        {gap.title}
      </h2>
      <p className="description" id="description">
        {hint(gap)}
      </p>
      {typeof gap.found === "string" && (
        <p className="stands">
          In the file: <code>{gap.found}</code>
          {mend !== null && (
            <button
              type="button"
              className="quiet"
              onClick={() => {
                type(mend);
                document.getElementById(ANSWER)?.focus();
              }}
            >
              Mend it
            </button>
          )}
        </p>
      )}
      <div className="field-place">
        <span className="label" id="form">
          {FORMS[gap.kind] ?? ""}
        </span>
        <GapForm
          key={gap.id}
          gap={gap}
          draft={isChoice(gap) ? answer.content : answer.draft}
          wrong={progress === "wrong"}
          edited={edited}
          typed={type}
          chosen={settle}
          left={leave}
        />
      </div>
      <p className="verdict" id="verdict" data-progress={progress} aria-live="polite">
        {asked
          ? "Two answers were given. Choose above which one shall stand."
          : said(gap, progress, status)}
      </p>
      <Suggestions
        gap={gap}
        take={(example) => {
          type(example);
          settle();
        }}
      />
      <p className="actions">
        <button
          type="button"
          className="secondary"
          disabled={step === 0}
          onClick={() => goTo(step - 1)}
        >
          Previous
        </button>
        <button type="submit" className="primary">
          {step + 1 < steps ? "Next" : "Finish"}
        </button>
      </p>
    </form>
  );
});

const MENDABLE = new Set<GapShown["kind"]>(["text", "long", "url", "email", "date", "number"]);

/** How the answer is to be written, where its field alone does not show it. */
const FORMS: Partial<Record<GapShown["kind"], string>> = {
  list: "One in each line",
  date: "Year-month-day",
};

function sameAnswer(
  one: { draft: unknown; answer: unknown },
  other: { draft: unknown; answer: unknown },
): boolean {
  return one.draft === other.draft && one.answer === other.answer;
}

function Suggestions({ gap, take }: { gap: GapShown; take: (example: string) => void }) {
  const fit = gap.kind === "text" || gap.kind === "search";
  if (!fit || !gap.examples?.length) return null;
  return (
    <p className="suggestions">
      {gap.examples.map((example) => (
        <button key={example} type="button" className="suggestion" onClick={() => take(example)}>
          {example}
        </button>
      ))}
    </p>
  );
}

function hint(gap: GapShown): string {
  const [, example] = gap.examples ?? [];
  return gap.kind === "date" && example
    ? `${gap.description} For example ${example}.`
    : gap.description;
}

function said(gap: GapShown, progress: Progress, { connection, storage }: Status): string {
  // Without a disk only the server keeps anything: where the work is says the page's top.
  const kept = storage === "memory" ? "" : "Kept";
  switch (progress) {
    case "resolved":
      return "Resolved.";
    case "wrong":
      return gap.problem ?? "";
    case "unchecked":
      if (connection === "online") return "Being checked…";
      return `${kept && `${kept}. `}It is checked when the server is back.`;
    case "begun":
      return `${kept && `${kept} as you type. `}It counts when you go on.`;
    case "open":
      return gap.problem ?? "";
    case "optional":
      return "The document may do without.";
  }
}

const DONE = new Set<Progress>(["resolved", "optional"]);

/** Behind the last question: what is left, or that nothing is. */
export interface EndProps {
  download: string;
  steps: number;
  goTo(step: number): void;
}

export function End({ download, steps, goTo }: EndProps) {
  const left = useSession(
    (state: Shown) =>
      gapsOf(state)
        .map((gap, step) => ({ step, title: gap.title, gap }))
        .filter(({ gap }) => !DONE.has(progressOf(gap, answerTo(state, gap)))),
    (one, other) => one.map(({ gap }) => gap.id).join() === other.map(({ gap }) => gap.id).join(),
  );
  const [first] = left;
  const valid = useSession((state: Shown) => state.context.valid);
  const name = useSession((state: Shown) => state.context.document_name);
  const own = useSession((state: Shown) => state.context.kind === "own");
  return (
    <section className="question" id="question" aria-labelledby="title">
      <p className="eyebrow">The end</p>
      <h2 id="title" tabIndex={-1}>
        {valid ? "The file is complete" : "Not quite complete"}
      </h2>
      <p className="description">
        {valid
          ? `It keeps to ${own ? "your schema. Take it with you." : "the format. Take it with you, and put it beside your source code."}`
          : `There ${left.length === 1 ? "is one gap" : `are ${left.length} gaps`} left: ${left.map(({ title }) => title).join(", ")}.`}
      </p>
      <p className="actions">
        <button type="button" className="secondary" onClick={() => goTo(steps - 1)}>
          Previous
        </button>
        {!valid && first && (
          <button type="button" className="primary" onClick={() => goTo(first.step)}>
            To “{first.title}”
          </button>
        )}
        {valid && (
          <a className="primary" href={download} download={name}>
            Download the file
          </a>
        )}
      </p>
    </section>
  );
}
