/** What somebody should know, and what can be done about it. */

import { type FormEvent, type ReactNode, useEffect, useId, useState } from "react";
import type { Conflict, Device, Json, Operation, RejectedChange } from "reattach";
import { useConflicts, useDevices, useRejected, useSession, useStatus } from "reattach-react";
import {
  answering,
  answerTo,
  type GapShown,
  gapsOf,
  isBlank,
  type Shown,
  type State,
  same,
  told,
} from "./state";

const NOTICES = "notices";

/** What there is to be told. */
function useNotices() {
  const { connection, error, storage, saved } = useStatus();
  const rejected = useRejected();
  const clashes = useClashes();
  const closed = connection === "closed" ? error : null;
  const memory = storage === "memory";
  const count = Number(closed !== null) + Number(memory) + clashes.length + rejected.length;
  return { closed, memory, error, saved, clashes, rejected, count };
}

const CLOSED: Readonly<Record<string, string>> = {
  session_not_found: "The server does not know this document",
  session_ended: "This document is closed for good",
};

export function Notices({ startAnew }: { startAnew: () => void }) {
  const { closed, memory, error, saved, clashes, rejected } = useNotices();
  const keepCopy = useKeepCopy();
  return (
    <div className="notices" id={NOTICES} tabIndex={-1} aria-live="polite">
      {closed && (
        <Callout title={CLOSED[closed.code] ?? "The server closed this document"}>
          <p>
            What you typed is still on this device. You can keep a copy, or start anew; neither
            takes anything away.
          </p>
          <p className="actions">
            <button type="button" className="secondary" onClick={keepCopy}>
              Keep a copy
            </button>
            <button type="button" className="secondary" onClick={startAnew}>
              Start anew
            </button>
          </p>
        </Callout>
      )}
      {memory && (
        <Callout title="This device keeps nothing">
          <p>
            {error?.code === "storage"
              ? "Its disk is full, or the browser may not use it. "
              : "This browser may not use its disk. "}
            What is not yet saved on the server is lost when this page closes.
          </p>
          {!saved && (
            <p className="actions">
              <button type="button" className="secondary" onClick={keepCopy}>
                Keep a copy
              </button>
            </p>
          )}
        </Callout>
      )}
      {clashes.map((clash) => (
        <Clash key={clash.gap.id} {...clash} />
      ))}
      {rejected.map((one) => (
        <Refused key={one.ref} change={one} keepCopy={keepCopy} />
      ))}
    </div>
  );
}

/** Leads to the notices where they came up out of sight: above what somebody is looking at. */
export function Beckon() {
  const { count } = useNotices();
  const above = useAbove(NOTICES, count > 0);
  if (count === 0 || !above) return null;
  return (
    <button type="button" className="beckon" onClick={() => show(NOTICES)}>
      {count === 1 ? "One thing needs a look" : `${count} things need a look`}
    </button>
  );
}

function show(id: string): void {
  const element = document.getElementById(id);
  element?.focus({ preventScroll: true });
  element?.scrollIntoView({ block: "start" });
}

/** Whether an element has been scrolled out of sight, upwards. */
function useAbove(id: string, watched: boolean): boolean {
  const [above, setAbove] = useState(false);
  useEffect(() => {
    const element = document.getElementById(id);
    if (!watched || !element) return;
    const observer = new IntersectionObserver(
      (entries) => {
        const last = entries.at(-1);
        if (last) setAbove(!last.isIntersecting && last.boundingClientRect.top < 0);
      },
      // What is behind the page's top is out of sight, too.
      { rootMargin: "-136px 0px 0px" },
    );
    observer.observe(element);
    return () => observer.disconnect();
  }, [id, watched]);
  return above;
}

function Callout({ title, children }: { title: string; children: ReactNode }) {
  const id = useId();
  return (
    <section className="callout" aria-labelledby={id}>
      <h2 id={id}>{title}</h2>
      {children}
    </section>
  );
}

// ── Conflicts ──────────────────────────────────────────────────────────────────────────────────────

interface ClashShown {
  gap: GapShown;
  conflict: Conflict;
  /** All the records of this gap: one choice settles them. */
  ids: readonly string[];
}

/**
 * Two devices wrote one answer: the later one stands, and the other one is not lost. What people
 * have settled stands in the state, so that all devices see it.
 *
 * Interim: the protocol has an operation for this, `resolve`, which the server does not do yet.
 */
function useClashes(): readonly ClashShown[] {
  const conflicts = useConflicts();
  const state = useSession((whole: Shown) => whole);
  const found = new Map<string, ClashShown>();
  for (const conflict of conflicts) {
    const gap = gapsOf(state).find(({ id }) => conflict.path.startsWith(`/user_responses/#${id}/`));
    const { value: lost } = conflict.lost;
    if (!gap || state.context.settled?.[conflict.id] || isBlank(lost)) continue;
    const { draft } = answerTo(state, gap);
    if (same(draft, lost)) continue;
    // What grew into the present text is no other answer.
    if (typeof draft === "string" && typeof lost === "string" && draft.startsWith(lost)) continue;
    const before = found.get(gap.id);
    const newer = before && before.conflict.version > conflict.version ? before.conflict : conflict;
    found.set(gap.id, { gap, conflict: newer, ids: [...(before?.ids ?? []), conflict.id] });
  }
  return [...found.values()];
}

function Clash({ gap, conflict, ids }: ClashShown) {
  const session = useSession<State>();
  const devices = useDevices();
  const draft = useSession((state: Shown) => answerTo(state, gap).draft);
  const { client_id: own } = session.export();
  const { value: lost } = conflict.lost;
  const choose = (keep: "kept" | "lost") => {
    const answer = answerTo(session.state, gap);
    const chosen = keep === "lost" ? lost : answer.draft;
    const path = `/user_responses/#${answer.id}`;
    const ops: Operation[] =
      keep === "lost" ? [{ op: "set", path: `${path}/draft`, value: lost as Json }] : [];
    // Where one of them counted already, the chosen one counts now.
    if (answer.answer !== null) ops.push(...answering({ ...answer, draft: chosen }));
    if (!session.state.context.settled) {
      ops.push({ op: "set", path: "/context/settled", value: {} });
    }
    for (const id of ids) ops.push({ op: "set", path: `/context/settled/${id}`, value: { keep } });
    session.change(ops);
  };
  return (
    <Callout title={`Two answers to “${gap.title}”`}>
      <p>They were given at the same time, on two devices. Choose the one that shall stand.</p>
      <ul className="versions">
        <Version
          value={draft}
          state="Stands now"
          by={author(conflict.kept, devices, own)}
          at={conflict.kept.at}
          action="Keep this one"
          choose={() => choose("kept")}
        />
        <Version
          value={lost}
          state="Set aside"
          by={author(conflict.lost, devices, own)}
          at={conflict.lost.at}
          action="Take this one"
          choose={() => choose("lost")}
        />
      </ul>
    </Callout>
  );
}

interface VersionProps {
  state: string;
  value: unknown;
  by: string;
  at: number | undefined;
  action: string;
  choose(): void;
}

function Version({ state, value, by, at, action, choose }: VersionProps) {
  const id = useId();
  return (
    <li className="version">
      <p className="by">{state}</p>
      <p className="value" id={id}>
        {told(value)}
      </p>
      <p className="by">
        {by}
        {at !== undefined && `, ${TIME.format(at)}`}
      </p>
      <button type="button" className="secondary" aria-describedby={id} onClick={choose}>
        {action}
      </button>
    </li>
  );
}

const TIME = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

function author({ by }: Conflict["kept"], devices: readonly Device[], own: string): string {
  if (by?.source === "server") return "The server";
  if (by?.client_id === own) return "This device";
  return devices.find(({ id }) => id === by?.device_id)?.name ?? "Another device";
}

// ── Changes that the server refused ────────────────────────────────────────────────────────────────

function Refused({ change, keepCopy }: { change: RejectedChange; keepCopy: () => void }) {
  const session = useSession<State>();
  const [editing, setEditing] = useState(false);
  const [failed, setFailed] = useState("");
  const op = change.ops.find((one) => "value" in one);
  const value = op && "value" in op ? op.value : undefined;
  const gap = gapsOf(session.state).find(({ id }) =>
    change.ops.some((one) => "path" in one && one.path.startsWith(`/user_responses/#${id}/`)),
  );
  const attempt = (again: () => void) => {
    try {
      again();
      setFailed("");
    } catch {
      setFailed("It makes no sense in the document of now. Keep a copy, or discard it.");
    }
  };
  const edit = (text: string) =>
    attempt(() => {
      change.edit(
        change.ops.map((one) => (one === op ? { ...one, value: text } : one)) as Operation[],
      );
    });
  return (
    <Callout
      title={`The server did not take ${gap ? `your answer to “${gap.title}”` : "a change"}`}
    >
      <p>
        {change.message.slice(0, 1).toUpperCase() + change.message.slice(1)}.{" "}
        <span className="code">({change.code})</span>
      </p>
      {editing ? (
        <EditRefused value={told(value)} edit={edit} cancel={() => setEditing(false)} />
      ) : (
        <>
          {value !== undefined && <p className="value clipped">{told(value).slice(0, 400)}</p>}
          <p className="actions">
            {typeof value === "string" && (
              <button type="button" className="secondary" onClick={() => setEditing(true)}>
                Edit it
              </button>
            )}
            <button
              type="button"
              className="secondary"
              onClick={() => attempt(() => void change.sendAgain())}
            >
              Send it again
            </button>
            <button type="button" className="quiet" onClick={keepCopy}>
              Keep a copy
            </button>
            <button type="button" className="quiet" onClick={() => change.discard()}>
              Discard
            </button>
          </p>
        </>
      )}
      <p className="problem">{failed}</p>
    </Callout>
  );
}

interface EditRefusedProps {
  value: string;
  edit(text: string): void;
  cancel(): void;
}

function EditRefused({ value, edit, cancel }: EditRefusedProps) {
  const [text, setText] = useState(value);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    edit(text);
  };
  return (
    <form onSubmit={submit}>
      <textarea
        aria-label="The refused answer"
        rows={4}
        value={text}
        onChange={(event) => setText(event.target.value)}
      />
      <p className="actions">
        <button type="submit" className="primary">
          Send this
        </button>
        <button type="button" className="secondary" onClick={cancel}>
          Cancel
        </button>
      </p>
    </form>
  );
}

/** Saves the document and all that is on this device alone as a file. */
function useKeepCopy(): () => void {
  const session = useSession<State>();
  return () => {
    const copy = JSON.stringify({ state: session.state, unsent: session.export() }, null, 2);
    const address = URL.createObjectURL(new Blob([copy], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = "gap-resolution.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  };
}
