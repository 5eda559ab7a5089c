/** The pages around a document: a new one, one that is being looked for, one that is not there. */

import { type DragEvent, type FormEvent, type ReactNode, useEffect, useId, useState } from "react";
import { type Kind, openDocument, type Place, Refused } from "./server";

export function Notice({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <main className="notice">
      <h1>{title}</h1>
      {children}
    </main>
  );
}

/** What is on this device comes within milliseconds: that needs no word. */
const PATIENCE_MS = 300;

export function Waiting({ startAnew }: { startAnew: () => void }) {
  const [late, setLate] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setLate(true), PATIENCE_MS);
    return () => clearTimeout(timer);
  }, []);
  return late ? (
    <Notice title="Looking for your document">
      <p className="lead" role="status">
        This device does not know it yet, and the server has not answered. This page goes on trying.
      </p>
      <p className="actions">
        <button type="button" className="secondary" onClick={startAnew}>
          Start anew
        </button>
      </p>
    </Notice>
  ) : null;
}

export interface MissingProps {
  title: string;
  reason: string;
  startAnew: () => void;
  /** Where it may come out otherwise another time. */
  tryAgain?: (() => void) | undefined;
}

export function Missing({ title, reason, startAnew, tryAgain }: MissingProps) {
  return (
    <Notice title={title}>
      <p className="lead">{reason}</p>
      <p className="lead">Whatever this device keeps stays on this device.</p>
      <p className="actions">
        {tryAgain && (
          <button type="button" className="primary" onClick={tryAgain}>
            Try again
          </button>
        )}
        <button type="button" className={tryAgain ? "secondary" : "primary"} onClick={startAnew}>
          Start anew
        </button>
      </p>
    </Notice>
  );
}

/** Why the server shows no document here, in the words of documents. */
export function whyMissing({ code, message }: { code: string; message: string }): {
  title: string;
  reason: string;
} {
  switch (code) {
    case "session_not_found":
      return {
        title: "There is no such document",
        reason: "The server knows none at this address, or none that is yours.",
      };
    case "session_ended":
      return {
        title: "This document is closed for good",
        reason: "Somebody who may do so has ended or erased it.",
      };
    default:
      return {
        title: "The server does not show this document",
        reason: `It says: ${message}.`,
      };
  }
}

const SAMPLES: { kind: Kind; name: string; about: string }[] = [
  {
    kind: "citation",
    name: "CITATION.cff",
    about: "How a research package wants to be cited. YAML, the Citation File Format.",
  },
  {
    kind: "pyproject",
    name: "pyproject.toml",
    about: "What a Python package says of itself. TOML, the packaging standards.",
  },
];

export function Start({ opened }: { opened: (place: Place) => void }) {
  const [busy, setBusy] = useState(false);
  const [failed, setFailed] = useState("");
  const open = async (kind: Kind, text?: string) => {
    setBusy(true);
    setFailed("");
    try {
      opened(await openDocument(kind, text));
    } catch (error) {
      setFailed(
        error instanceof Refused
          ? `The server could not read it: ${error.message}.`
          : "The server cannot be reached just now. Try again in a moment.",
      );
      setBusy(false);
    }
  };
  return (
    <Notice title="A document, almost finished">
      <p className="lead">
        Here you fill what a file still lacks, one gap at a time, and take the finished one with
        you. Every key is kept as you type it: close the tab, lose the network, pull the plug. You
        go on where you were.
      </p>
      <h2 className="small" id="samples">
        Begin with an unfinished one
      </h2>
      <ul className="samples" aria-labelledby="samples">
        {SAMPLES.map(({ kind, name, about }) => (
          <li key={kind}>
            <button type="button" className="sample" disabled={busy} onClick={() => open(kind)}>
              <span className="sample-name">{name}</span>
              <span className="sample-about">{about}</span>
            </button>
          </li>
        ))}
      </ul>
      <Own busy={busy} open={open} />
      <OwnSchema busy={busy} open={open} />
      <p className="problem" role="alert">
        {failed}
      </p>
    </Notice>
  );
}

interface OwnProps {
  busy: boolean;
  open: (kind: Kind, text: string) => void;
}

/** A form for a new document of any JSON Schema. */
function OwnSchema({ busy, open }: OwnProps) {
  const id = useId();
  const [text, setText] = useState("");
  const [over, setOver] = useState(false);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (text.trim() !== "") open("own", text);
  };
  const read = async (file: File | undefined) => {
    if (file) setText(await file.text());
  };
  const drop = (event: DragEvent) => {
    setOver(false);
    const [file] = event.dataTransfer.files;
    // A text that is dropped goes where it is dropped, as ever.
    if (!file) return;
    event.preventDefault();
    void read(file);
  };
  return (
    <details className="own">
      <summary>Bring your own schema</summary>
      <form
        onSubmit={submit}
        onDragOver={(event) => {
          setOver(event.dataTransfer.types.includes("Files"));
          if (event.dataTransfer.types.includes("Files")) event.preventDefault();
        }}
        onDragLeave={() => setOver(false)}
        onDrop={drop}
        data-over={over || undefined}
      >
        <label className="label" htmlFor={`${id}-schema`}>
          A JSON Schema, pasted or dropped here
        </label>
        <textarea
          id={`${id}-schema`}
          rows={8}
          spellCheck={false}
          aria-describedby={`${id}-help`}
          placeholder={EXAMPLE}
          value={text}
          onChange={(event) => setText(event.target.value)}
        />
        <p className="help" id={`${id}-help`}>
          Of an object, with a question for each of its properties. It is kept with the document.
        </p>
        <p className="actions">
          <label className="secondary upload">
            Choose a file
            <input
              type="file"
              className="hidden"
              accept=".json,application/schema+json"
              onChange={(event) => void read(event.target.files?.[0])}
            />
          </label>
          <button type="submit" className="primary" disabled={busy || text.trim() === ""}>
            Make its form
          </button>
        </p>
      </form>
    </details>
  );
}

const EXAMPLE = `{
  "title": "Field trip",
  "type": "object",
  "required": ["place"],
  "properties": {
    "place": { "type": "string" }
  }
}`;

function Own({ busy, open }: OwnProps) {
  const id = useId();
  const [kind, setKind] = useState<Kind>("citation");
  const [text, setText] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (text.trim() !== "") open(kind, text);
  };
  const read = async (file: File | undefined) => {
    if (!file) return;
    setText(await file.text());
    if (file.name.endsWith(".toml")) setKind("pyproject");
    else if (file.name.endsWith(".cff")) setKind("citation");
  };
  return (
    <details className="own">
      <summary>Bring your own file</summary>
      <form onSubmit={submit}>
        <fieldset className="row">
          <legend className="label">What it is</legend>
          {SAMPLES.map(({ kind: one, name }) => (
            <label key={one} className="choice">
              <input
                type="radio"
                name={`${id}-kind`}
                checked={kind === one}
                onChange={() => setKind(one)}
              />
              {name}
            </label>
          ))}
        </fieldset>
        <label className="label" htmlFor={`${id}-text`}>
          Its text, in JSON, YAML or TOML
        </label>
        <textarea
          id={`${id}-text`}
          rows={6}
          spellCheck={false}
          maxLength={100_000}
          value={text}
          onChange={(event) => setText(event.target.value)}
        />
        <p className="actions">
          <label className="secondary upload">
            Choose a file
            <input
              type="file"
              className="hidden"
              accept=".cff,.yaml,.yml,.toml,.json"
              onChange={(event) => void read(event.target.files?.[0])}
            />
          </label>
          <button type="submit" className="primary" disabled={busy || text.trim() === ""}>
            Find its gaps
          </button>
        </p>
      </form>
    </details>
  );
}
