/** What somebody should know, and what can be done about it. */

import { type FormEvent, type ReactNode, useEffect, useId, useState } from "react";
import type { Conflict, Device, Operation, RejectedChange } from "reattach";
import { useConflicts, useDevices, useRejected, useSession, useStatus } from "reattach-react";
import {
  answerTo,
  drafting,
  type GapShown,
  gapsOf,
  isBlank,
  isChoice,
  pathOf,
  type Shown,
  type State,
  same,
  told,
  valueAt,
} from "./state";

const NOTICES = "notices";

/** What there is to be told. */
function useNotices() {
  const { connection, error, storage, saved } = useStatus();
  const rejected = useRejected();
  const clashes = useClashes();
  // A token that the server does not know gets no better: nobody can sign in here.
  const over = connection === "closed" || error?.code === "not_authenticated";
  const closed = over ? error : null;
  const memory = storage === "memory";
  const count = Number(closed !== null) + Number(memory) + clashes.length + rejected.length;
  return { closed, memory, error, saved, clashes, rejected, count };
}

const CLOSED: Readonly<Record<string, string>> = {
  session_not_found: "The server does not know this document",
  not_authenticated: "The server does not know this document on this device",
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
        <Clash key={clash.conflict.id} {...clash} />
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
  title: string;
  /** The question that it is about; undefined where it is about none. */
  gap: GapShown | undefined;
  conflict: Conflict;
  /** Others of the same question, which one choice settles along with it. */
  along: readonly Conflict[];
}

/**
 * What was written on two devices at once and could not be merged. Of two answers people choose
 * ("open"); of anything else one stands already, and the other is not lost ("auto").
 */
function useClashes(): readonly ClashShown[] {
  const conflicts = useConflicts();
  const state = useSession((whole: Shown) => whole);
  const found = new Map<string, ClashShown>();
  for (const conflict of [...conflicts].sort((one, other) => weight(one) - weight(other))) {
    const { path, status, lost } = conflict;
    const gap = gapsOf(state).find((one) => path.startsWith(`${pathOf(one)}/`));
    if (status === "auto" && isOld(valueAt(state, path), lost.value)) continue;
    const subject = gap?.id ?? path;
    const first = found.get(subject);
    if (first) found.set(subject, { ...first, along: [...first.along, conflict] });
    else found.set(subject, { title: gap?.title ?? named(path), gap, conflict, along: [] });
  }
  return [...found.values()];
}

/** Where people are asked comes first, and then what came last. */
function weight({ status, version }: Conflict): number {
  return (status === "open" ? -1e15 : 0) - version;
}

/** Nothing, or what grew into the present text: that is no other version. */
function isOld(stands: unknown, lost: unknown): boolean {
  if (isBlank(lost) || same(stands, lost)) return true;
  return typeof stands === "string" && typeof lost === "string" && stands.startsWith(lost);
}

function named(path: string): string {
  const names: Readonly<Record<string, string>> = {
    "/notes": "Notes",
    "/context/syntax": "The file’s format",
  };
  return names[path] ?? path;
}

function Clash({ title, gap, conflict, along }: ClashShown) {
  const session = useSession<State>();
  const devices = useDevices();
  const { client_id: own } = session.export();
  const { path, status, kept, lost } = conflict;
  const stands = useSession((state: Shown) => valueAt(state, path));
  const open = status === "open";
  const choose = (keep: Parameters<Conflict["resolve"]>[0]) => {
    const value = keep === "kept" ? stands : keep === "lost" ? lost.value : keep.value;
    conflict.resolve(keep);
    for (const one of along) one.resolve("kept");
    // The field shows what was chosen, and not what several have typed.
    if (gap && open && !isChoice(gap)) {
      session.change(drafting(answerTo(session.state, gap), value ?? ""));
    }
  };
  return (
    <Callout title={open ? `Which answer to “${title}”?` : `Two versions of “${title}”`}>
      <p>
        {open
          ? "You are asked: two answers were given at the same time. The first one stands until somebody chooses."
          : "They were written at the same time. One of them stands, and nobody has to do anything; the other is kept, in case it is the better one."}
      </p>
      <ul className="versions">
        <Version
          value={stands}
          state={open ? "Stands for now" : "Stands"}
          by={author(kept, devices, own)}
          at={kept.at}
          action="Keep this one"
          choose={() => choose("kept")}
        />
        <Version
          value={lost.value}
          state={open ? "Waits for you" : "Set aside"}
          by={author(lost, devices, own)}
          at={lost.at}
          action="Take this one"
          choose={() => choose("lost")}
        />
      </ul>
      {typeof stands === "string" && (gap ? !isChoice(gap) : path === "/notes") && (
        <Another use={(value) => choose({ value })} />
      )}
    </Callout>
  );
}

/** Neither of the two. */
function Another({ use }: { use(value: string): void }) {
  const id = useId();
  const [text, setText] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (text.trim() !== "") use(text.trim());
  };
  return (
    <form className="another" onSubmit={submit}>
      <label className="label" htmlFor={id}>
        Or neither of them, but
      </label>
      <p className="link">
        <input id={id} type="text" value={text} onChange={(event) => setText(event.target.value)} />
        <button type="submit" className="secondary" disabled={text.trim() === ""}>
          Use this
        </button>
      </p>
    </form>
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

/** Why a choice between two versions came too late; nothing is lost by that. */
const TOO_LATE: Readonly<Record<string, readonly [title: string, text: string]>> = {
  already_resolved: [
    "Somebody else has chosen first",
    "What they chose stands. It can be changed like everything else here.",
  ],
  conflict_changed: [
    "Your choice came too late",
    "Another version had come in meanwhile: look again, and choose again.",
  ],
};

function Refused({ change, keepCopy }: { change: RejectedChange; keepCopy: () => void }) {
  const late = TOO_LATE[change.code];
  if (!late) return <RefusedChange change={change} keepCopy={keepCopy} />;
  const [title, text] = late;
  return (
    <Callout title={title}>
      <p>{text}</p>
      <p className="actions">
        <button type="button" className="secondary" onClick={() => change.discard()}>
          All right
        </button>
      </p>
    </Callout>
  );
}

/** What an operation puts into the state. */
function written(op: Operation): unknown {
  if (op.op === "splice") return op.insert;
  return "value" in op ? op.value : undefined;
}

function RefusedChange({ change, keepCopy }: { change: RejectedChange; keepCopy: () => void }) {
  const session = useSession<State>();
  const [editing, setEditing] = useState(false);
  const [failed, setFailed] = useState("");
  const op = change.ops.find((one) => written(one) !== undefined);
  const value = op && written(op);
  const gap = gapsOf(session.state).find((gap) =>
    change.ops.some((one) => "path" in one && one.path.startsWith(`${pathOf(gap)}/`)),
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
      change.edit(change.ops.map((one) => (one === op ? rewritten(one, text) : one)));
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

function rewritten(op: Operation, text: string): Operation {
  if (op.op === "splice") return { ...op, insert: text };
  return { ...op, value: text } as Operation;
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
