/** The page of one document: the question, the list of all of them, the file as it grows. */

import { memo, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "react";
import { SaveStatus, useDevices, useSession, useStatus, WORDS, type Words } from "reattach-react";
import { ANSWER } from "./form";
import { HandOff } from "./handoff";
import { newLines } from "./lines";
import { Notes } from "./notes";
import { Beckon, Notices } from "./notices";
import { End, Question } from "./question";
import { detectGaps, downloadAddress, type Place } from "./server";
import {
  answerTo,
  type GapShown,
  gapsOf,
  goingOn,
  type Progress,
  progressOf,
  type Shown,
  type State,
  type Syntax,
  same,
} from "./state";
import { keepView, restoreView, type View } from "./view";

/** For this long after the last key, another device does not lead this one to another question. */
const TYPING_MS = 30_000;
const DETECT_RETRY_MS = 2_000;

const SAID: Words = { ...WORDS, connection: { ...WORDS.connection, closed: "Offline" } };

export function DocumentPage({ place, startAnew }: { place: Place; startAnew: () => void }) {
  const { step, steps, gap, shared, goTo, onType } = useSteps();
  const name = useSession((state: Shown) => state.context.document_name);
  const format = useSession((state: Shown) => state.context.format);
  useDetection(place);
  useEffect(() => {
    document.title = `${name} – gap resolution`;
  }, [name]);
  return (
    <>
      {/* No link: where a link leads stands in the address, and there the document's id is. */}
      <button type="button" className="skip" onClick={focusQuestion}>
        To the question
      </button>
      <header className="top">
        <div className="names">
          <h1 className="name">{name}</h1>
          <span className="format">{format}</span>
        </div>
        <SaveStatus className="status" words={SAID} />
        <ProgressBar />
        <Beckon />
      </header>
      <main>
        <div className="asking">
          <Notices startAnew={startAnew} />
          <div>
            {gap ? (
              <Question gap={gap} step={step} steps={steps} goTo={goTo} onType={onType} />
            ) : (
              <End download={downloadAddress(place)} steps={steps} goTo={goTo} />
            )}
            <Elsewhere step={step} shared={shared} goTo={goTo} />
          </div>
          <GapList step={step} goTo={goTo} />
        </div>
        <div className="beside">
          <Sheet place={place} />
          <Notes />
        </div>
      </main>
      <footer>
        <Devices />
        <HandOff startAnew={startAnew} />
      </footer>
    </>
  );
}

function focusQuestion(): void {
  const title = document.getElementById("title");
  (document.getElementById(ANSWER) ?? title)?.focus();
  // The field alone does not say what is asked.
  title?.scrollIntoView({ block: "nearest" });
}

// ── Where somebody is ──────────────────────────────────────────────────────────────────────────────

interface Steps {
  step: number;
  steps: number;
  gap: GapShown | undefined;
  /** Where the session is: the step that another device went to last. */
  shared: number;
  /** Goes to another question, on all devices; what was typed into this one is its answer. */
  goTo(step: number): void;
  onType(): void;
}

function useSteps(): Steps {
  const session = useSession<State>();
  const gaps = useSession((state: Shown) => gapsOf(state));
  const shared = useSession((state: Shown) => state.current_step);
  const [view] = useLocalOnce<View>("view");
  const [wanted, setWanted] = useState(() => {
    const before = gaps.findIndex(({ id }) => id === view?.gap);
    if (view?.gap === "") return gaps.length;
    return before === -1 ? shared : before;
  });
  const step = Math.max(0, Math.min(wanted, gaps.length));
  const gap = gaps[step];

  const lastKey = useRef(Number.NEGATIVE_INFINITY);
  const onType = useCallback(() => {
    lastKey.current = performance.now();
  }, []);

  // Another device went on: this one follows, unless somebody is typing here.
  const followed = useRef(shared);
  useEffect(() => {
    if (followed.current === shared) return;
    followed.current = shared;
    const inForm = document.activeElement?.closest("#question .field-place");
    if (!inForm || performance.now() - lastKey.current > TYPING_MS) setWanted(shared);
  }, [shared]);

  const focusNext = useRef(false);
  const goTo = useCallback(
    (to: number) => {
      const { state } = session;
      const all = gapsOf(state);
      const here = all[step];
      const next = Math.max(0, Math.min(to, all.length));
      followed.current = next;
      lastKey.current = Number.NEGATIVE_INFINITY;
      session.change([
        ...(here ? goingOn(session, here) : []),
        ...(state.current_step === next
          ? []
          : [{ op: "set", path: "/current_step", value: next } as const]),
      ]);
      focusNext.current = true;
      setWanted(next);
    },
    [session, step],
  );
  // biome-ignore lint/correctness/useExhaustiveDependencies: the step is what brings another question
  useLayoutEffect(() => {
    if (focusNext.current) focusQuestion();
    focusNext.current = false;
  }, [step]);

  const at = useRef("");
  at.current = gap?.id ?? "";
  useLayoutEffect(() => {
    if (view) restoreView(view);
    return keepView(session.local<View>("view"), () => at.current);
  }, [session, view]);

  return { step, steps: gaps.length, gap, shared, goTo, onType };
}

/** What this device knew when the page began: what it notes meanwhile renders nothing. */
function useLocalOnce<T>(key: string): readonly [T | undefined] {
  const session = useSession<State>();
  return useMemo(() => [session.local<T>(key).get()], [session, key]);
}

function Elsewhere({ step, shared, goTo }: { step: number; shared: number; goTo: Steps["goTo"] }) {
  const there = useSession((state: Shown) => gapsOf(state)[state.current_step]?.title ?? "The end");
  if (shared === step) return null;
  return (
    <p className="elsewhere">
      Another device has gone on to “{there}”.{" "}
      <button type="button" className="quiet" onClick={() => goTo(shared)}>
        Go there
      </button>
    </p>
  );
}

/** Has the server look at what began without it; answers it looks at by itself. */
function useDetection(place: Place): void {
  const online = useStatus().connection === "online";
  useEffect(() => {
    if (!online) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let over = false;
    const detect = async () => {
      const done = await detectGaps(place);
      if (!over && !done) timer = setTimeout(detect, DETECT_RETRY_MS);
    };
    void detect();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [place, online]);
}

// ── What there is to see ───────────────────────────────────────────────────────────────────────────

function ProgressBar() {
  const resolved = useSession((state: Shown) => state.gaps_resolved.length);
  const total = useSession(
    (state: Shown) =>
      gapsOf(state).filter((gap) => progressOf(gap, answerTo(state, gap)) !== "optional").length,
  );
  return (
    <div className="progress">
      <progress aria-labelledby="count" max={Math.max(total, 1)} value={resolved} />
      <p className="count" id="count">
        {resolved} of {total} gaps resolved
      </p>
    </div>
  );
}

const PROGRESS: Record<Progress, string> = {
  open: "open",
  optional: "optional",
  begun: "begun",
  unchecked: "being checked",
  wrong: "needs another answer",
  resolved: "resolved",
};

function GapList({ step, goTo }: { step: number; goTo: Steps["goTo"] }) {
  const gaps = useSession(
    (state: Shown) =>
      gapsOf(state).map((gap) => ({
        id: gap.id,
        title: gap.title,
        progress: progressOf(gap, answerTo(state, gap)),
      })),
    (one, other) => JSON.stringify(one) === JSON.stringify(other),
  );
  return (
    <nav aria-labelledby="all-gaps">
      <h2 className="small" id="all-gaps">
        All gaps
      </h2>
      <ol className="gaps">
        {gaps.map(({ id, title, progress }, index) => (
          <li key={id}>
            <button
              type="button"
              data-progress={progress}
              aria-current={index === step ? "step" : undefined}
              onClick={() => goTo(index)}
            >
              <span className="mark" aria-hidden="true" />
              <span>{title}</span>
              <span className="word">{PROGRESS[progress]}</span>
            </button>
          </li>
        ))}
      </ol>
    </nav>
  );
}

const SYNTAXES: readonly Syntax[] = ["yaml", "toml", "json"];

function Sheet({ place }: { place: Place }) {
  const session = useSession<State>();
  const context = useSession((state: Shown) => state.context);
  const online = useStatus().connection === "online";
  const waiting = useSession(
    (state: Shown) =>
      gapsOf(state).filter((gap) => !same(answerTo(state, gap).answer, gap.checked)).length,
  );
  const { document_name: name, syntax, valid } = context;
  return (
    <section className="file" aria-labelledby="file">
      <div className="file-top">
        <h2 className="small" id="file">
          The file
        </h2>
        <label className="syntax">
          <span className="hidden">Its format</span>
          <select
            value={syntax}
            onChange={(event) => session.set("/context/syntax", event.target.value)}
          >
            {SYNTAXES.map((one) => (
              <option key={one} value={one}>
                {one.toUpperCase()}
              </option>
            ))}
          </select>
        </label>
        {valid ? (
          <a className="button" id="download" href={downloadAddress(place)} download={name}>
            Download
          </a>
        ) : (
          // Not in the way of the keyboard, and still there to be found.
          <span className="button" id="download" title="When every gap is resolved">
            Download
          </span>
        )}
      </div>
      <Lines original={context.original} now={context.document} />
      <p className="behind" aria-live="polite">
        {!online && waiting > 0
          ? `${waiting === 1 ? "One answer comes" : `${waiting} answers come`} in when the server is back.`
          : ""}
      </p>
    </section>
  );
}

const Lines = memo(function Lines({ original, now }: { original: string; now: string }) {
  const before = useRef(now);
  const known = new Set(before.current.split("\n"));
  useEffect(() => {
    before.current = now;
  }, [now]);
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls has to be reached by the keyboard
    <section className="sheet" tabIndex={0} aria-label="The file as it stands">
      <pre>
        {newLines(original.replace(/\n$/, ""), now.replace(/\n$/, "")).map(
          ({ text, fresh }, index) => {
            const just = fresh && !known.has(text);
            const kind = ["line", fresh && "new", just && "just"].filter(Boolean).join(" ");
            return (
              // biome-ignore lint/suspicious/noArrayIndexKey: lines have nothing else
              <span key={`${index} ${text}`} className={kind}>
                {/* An empty line has a height, and is copied with the others. */}
                {text || <br />}
              </span>
            );
          },
        )}
      </pre>
    </section>
  );
});

function Devices() {
  const devices = useDevices();
  const here = devices.filter(({ online }) => online);
  const away = devices.length - here.length;
  return (
    <section aria-labelledby="devices">
      <h2 className="small" id="devices">
        Devices on this document
      </h2>
      <ul className="devices">
        {here.map(({ id, name }) => (
          <li key={id}>{name ?? "A device"}</li>
        ))}
        {away > 0 && <li className="away">{away} more, away</li>}
        {devices.length === 0 && <li className="away">Not known while offline</li>}
      </ul>
    </section>
  );
}
