// Small parts that all views have.

import { type ReactNode, useEffect, useRef, useState } from "react";
import type { Problem } from "./api.js";
import { address, go } from "./view.js";

export function Link(props: {
  to: string;
  className?: string;
  current?: boolean;
  children: ReactNode;
}) {
  return (
    <a
      href={props.to}
      className={props.className}
      aria-current={props.current ? "page" : undefined}
      onClick={(event) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
        event.preventDefault();
        go(props.to);
      }}
    >
      {props.children}
    </a>
  );
}

export const toSession = (sessionId: string) => address({ session: sessionId }, true);

export function Empty(props: { title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <p className="empty-title">{props.title}</p>
      {props.children !== undefined && <p>{props.children}</p>}
    </div>
  );
}

export function Wrong(props: { problem: Problem }) {
  return (
    <div className="wrong" role="alert">
      <strong>{props.problem.status === 0 ? "No answer" : `Error ${props.problem.status}`}</strong>{" "}
      {props.problem.message}
    </div>
  );
}

export function Online(props: { online: boolean }) {
  return (
    <span className={props.online ? "dot on" : "dot"}>{props.online ? "online" : "offline"}</span>
  );
}

export function Copy(props: { text: string; label: string }) {
  const [done, say] = useState(false);
  useEffect(() => {
    if (!done) return;
    const timer = setTimeout(() => say(false), 1_500);
    return () => clearTimeout(timer);
  }, [done]);
  return (
    <button
      type="button"
      className="quiet small"
      aria-label={props.label}
      onClick={() => navigator.clipboard?.writeText(props.text).then(() => say(true))}
    >
      {done ? "Copied" : "Copy"}
    </button>
  );
}

/** Asks before something is done; `submit` is told what was typed. */
export function Ask(props: {
  title: string;
  action: string;
  field?: string;
  children?: ReactNode;
  submit: (text: string) => Promise<void>;
  close: () => void;
}) {
  const box = useRef<HTMLDialogElement>(null);
  const [text, type] = useState("");
  const [busy, work] = useState(false);
  const [problem, fail] = useState<string | null>(null);
  useEffect(() => box.current?.showModal(), []);
  const submit = () => {
    work(true);
    props.submit(text).then(props.close, (error: Error) => {
      work(false);
      fail(error.message);
    });
  };
  return (
    <dialog ref={box} onClose={props.close} aria-labelledby="ask">
      <form
        method="dialog"
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        <h2 id="ask">{props.title}</h2>
        {props.children}
        {props.field !== undefined && (
          <label>
            {props.field}
            <input value={text} maxLength={256} onChange={(event) => type(event.target.value)} />
          </label>
        )}
        {problem !== null && (
          <p className="wrong" role="alert">
            {problem}
          </p>
        )}
        <div className="buttons">
          <button type="button" onClick={props.close}>
            Cancel
          </button>
          <button type="submit" className="primary" disabled={busy}>
            {props.action}
          </button>
        </div>
      </form>
    </dialog>
  );
}
