import { useCallback, useEffect, useRef, useState } from "react";
import { get, type Listed, type Me, type Page, Problem } from "./api.js";
import { ago, count, plural } from "./format.js";
import { Empty, Online, toSession, Wrong } from "./parts.js";
import { useNow } from "./reading.js";
import { go, useView } from "./view.js";
import { VirtualList } from "./virtual.js";

const ROW = 44;
const HOUR = 3_600_000;
const SPANS: readonly (readonly [string, string, number])[] = [
  ["", "Any time", 0],
  ["hour", "Last hour", HOUR],
  ["day", "Last day", 24 * HOUR],
  ["week", "Last week", 7 * 24 * HOUR],
  ["month", "Last month", 30 * 24 * HOUR],
];

interface Found {
  items: Listed[];
  next: string | null;
  done: boolean;
  problem: Problem | null;
}

const NOTHING: Found = { items: [], next: null, done: false, problem: null };

export function Sessions(props: { me: Me }) {
  const [view, change] = useView();
  const filters = ["q", "schema", "active", "online"].map((name) => view.get(name) ?? "");
  const [q, schema, active, online] = filters as [string, string, string, string];
  const key = filters.join("\n");
  const [found, put] = useState<Found>(NOTHING);
  const [chosen, choose] = useState(-1);
  const reading = useRef<AbortController | null>(null);
  const now = useNow(5_000);

  const read = useCallback(
    (next: string | null, keep: Listed[]) => {
      reading.current?.abort();
      const abort = new AbortController();
      reading.current = abort;
      const span = SPANS.find(([name]) => name === active)?.[2] ?? 0;
      const since = span > 0 ? Date.now() - span : null;
      const query = { q: q || null, schema: schema || null, since, online: online || null, next };
      get<Page<Listed>>("sessions", query, abort.signal).then(
        (page) => {
          reading.current = null;
          const known = new Set(keep.map((one) => one.session_id));
          const items = [...keep, ...page.items.filter((one) => !known.has(one.session_id))];
          put({ items, next: page.next, done: true, problem: null });
        },
        (error: unknown) => {
          if (abort.signal.aborted) return;
          reading.current = null;
          const problem = error instanceof Problem ? error : new Problem(0, "error", String(error));
          put((old) => ({ ...old, done: true, problem }));
        },
      );
    },
    [q, schema, active, online],
  );

  // biome-ignore lint/correctness/useExhaustiveDependencies: another search begins anew.
  useEffect(() => {
    choose(-1);
    const timer = setTimeout(() => read(null, []), 120);
    return () => {
      clearTimeout(timer);
      reading.current?.abort();
      reading.current = null;
    };
  }, [key, read]);

  // The first page is kept true while nobody has gone further.
  const alone = found.items.length <= 100;
  useEffect(() => {
    if (!alone) return;
    const timer = setInterval(() => {
      if (reading.current === null && !document.hidden) read(null, []);
    }, 2_000);
    return () => clearInterval(timer);
  }, [alone, read]);

  const seen = useCallback(
    (_: number, last: number) => {
      if (found.next !== null && reading.current === null && last >= found.items.length - 20) {
        read(found.next, found.items);
      }
    },
    [found, read],
  );

  const open = (index: number) => {
    const one = found.items[index];
    if (one !== undefined) go(toSession(one.session_id));
  };

  return (
    <section className="page sessions" aria-labelledby="title">
      <div className="head">
        <h1 id="title">Sessions</h1>
        <p className="soft" role="status">
          {found.done &&
            (found.next === null
              ? plural(found.items.length, "session")
              : `the ${count(found.items.length)} most recent so far`)}
        </p>
      </div>
      <search className="filters">
        <label className="wide">
          <span className="name">
            Id or user <kbd>/</kbd>
          </span>
          <input
            type="search"
            data-search=""
            value={q}
            placeholder="How the session’s id or the user’s begins"
            onChange={(event) => change({ q: event.target.value }, true)}
            onKeyDown={(event) => {
              if (event.key !== "ArrowDown" && event.key !== "Enter") return;
              event.preventDefault();
              if (event.key === "Enter") open(Math.max(0, chosen));
              else document.querySelector<HTMLElement>(".sessions .list")?.focus();
            }}
          />
        </label>
        <label>
          <span className="name">Schema</span>
          <select value={schema} onChange={(event) => change({ schema: event.target.value }, true)}>
            <option value="">Any</option>
            {[...new Set([...props.me.schemas, schema])].filter(Boolean).map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <label>
          <span className="name">Active</span>
          <select value={active} onChange={(event) => change({ active: event.target.value }, true)}>
            {SPANS.map(([name, title]) => (
              <option key={name} value={name}>
                {title}
              </option>
            ))}
          </select>
        </label>
        <label>
          <span className="name">Devices</span>
          <select value={online} onChange={(event) => change({ online: event.target.value }, true)}>
            <option value="">Any</option>
            <option value="true">Online</option>
            <option value="false">Offline</option>
          </select>
        </label>
      </search>
      {found.problem !== null && <Wrong problem={found.problem} />}
      {!found.done ? (
        <p className="waiting">Looking…</p>
      ) : found.items.length === 0 && found.problem === null ? (
        key.trim() === "" ? (
          <Empty title="No sessions yet">They appear here as soon as somebody begins one.</Empty>
        ) : (
          <Empty title="No session is like that">
            The search is for how an id begins, in the case that it is written in.
          </Empty>
        )
      ) : (
        <div className="table">
          <div className="columns grid-sessions" aria-hidden="true">
            <span>Session</span>
            <span>User</span>
            <span>Schema</span>
            <span className="number">Version</span>
            <span>Active</span>
            <span>Devices</span>
          </div>
          <VirtualList
            label="Sessions, newest activity first"
            count={found.items.length}
            height={ROW}
            chosen={chosen}
            choose={choose}
            act={open}
            seen={seen}
            row={(index) => {
              const one = found.items[index];
              return one === undefined ? null : <Line one={one} now={now} />;
            }}
          />
        </div>
      )}
    </section>
  );
}

function Line(props: { one: Listed; now: number }) {
  const { one } = props;
  return (
    <div className="grid-sessions">
      <span className="mono cut">{one.session_id}</span>
      <span className="cut">{one.user_id}</span>
      <span className="cut soft">
        {one.schema === null ? "–" : `${one.schema.name} ${one.schema.version ?? ""}`}
      </span>
      <span className="number">{count(one.version)}</span>
      <span className="soft">{ago(one.last_activity, props.now)}</span>
      <span>
        {one.is_active ? <Online online={one.online} /> : <span className="tag">ended</span>}
      </span>
    </div>
  );
}
