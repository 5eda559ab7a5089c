import { useCallback, useEffect, useState } from "react";
import { get, type Me, Problem, token } from "./api.js";
import { Nodes } from "./nodes.js";
import { Link, Wrong } from "./parts.js";
import { SessionPage } from "./session.js";
import { Sessions } from "./sessions.js";
import { address, useView } from "./view.js";

export function App() {
  const [me, know] = useState<Me | null>(null);
  const [problem, fail] = useState<Problem | null>(null);
  const [view] = useView();
  const enter = useCallback(() => {
    get<Me>("me").then(
      (found) => {
        fail(null);
        know(found);
      },
      (error: unknown) =>
        fail(error instanceof Problem ? error : new Problem(0, "error", String(error))),
    );
  }, []);
  useEffect(enter, [enter]);

  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const free = !(event.target instanceof HTMLInputElement) && !event.ctrlKey && !event.metaKey;
      const field = document.querySelector<HTMLInputElement>("[data-search]");
      if (event.key !== "/" || !free || field === null) return;
      event.preventDefault();
      field.select();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);

  const session = view.get("session");
  const page = session !== null ? "session" : view.get("page") === "nodes" ? "nodes" : "sessions";
  return (
    <>
      <header className="top">
        <Link to={address({}, true)} className="brand">
          <svg viewBox="0 0 32 32" width="20" height="20" aria-hidden="true">
            <rect className="logo" width="32" height="32" rx="7" />
            <path className="logo-line" d="M7 20h4V12h4v12h4V8h4v9h2" />
          </svg>
          Inspector
        </Link>
        <nav aria-label="Views">
          <Link to={address({}, true)} current={page !== "nodes"}>
            Sessions
          </Link>
          <Link to={address({ page: "nodes" }, true)} current={page === "nodes"}>
            Server
          </Link>
        </nav>
        {me !== null && (
          <p className="who">
            <span className={me.writes ? "tag strong" : "tag"}>
              {me.writes ? "May write" : "Read-only"}
            </span>
            <span className="soft">
              {me.id} · {me.release}
            </span>
          </p>
        )}
      </header>
      <main>
        {me === null ? (
          <Gate problem={problem} enter={enter} />
        ) : page === "nodes" ? (
          <Nodes />
        ) : session !== null ? (
          <SessionPage key={session} sessionId={session} writes={me.writes} />
        ) : (
          <Sessions me={me} />
        )}
      </main>
    </>
  );
}

/** Whoever is not let in may have a token. */
function Gate(props: { problem: Problem | null; enter: () => void }) {
  const [text, type] = useState("");
  if (props.problem === null) return <p className="waiting">Opening…</p>;
  if (props.problem.status !== 401) {
    return (
      <div className="gate">
        <h1>The inspector does not open</h1>
        <Wrong problem={props.problem} />
        <button type="button" onClick={props.enter}>
          Try again
        </button>
      </div>
    );
  }
  return (
    <form
      className="gate"
      onSubmit={(event) => {
        event.preventDefault();
        token.set(text.trim());
        props.enter();
      }}
    >
      <h1>Who inspects?</h1>
      <p>
        This server shows its sessions to whoever has the inspector’s token (
        <code>REATTACH_INSPECTOR_TOKEN</code>). It is kept until this tab is closed.
      </p>
      <label>
        Token
        <input
          type="password"
          autoComplete="off"
          value={text}
          onChange={(event) => type(event.target.value)}
        />
      </label>
      {token.get() !== null && <p role="alert">That token is not the one.</p>}
      <button type="submit" className="primary" disabled={text.trim() === ""}>
        Open
      </button>
    </form>
  );
}
