import { useEffect, useMemo, useRef, useState } from "react";
import {
  type Activity,
  type Checkpoint,
  type Commit,
  type Conflict,
  download,
  follow,
  get,
  type Json,
  of,
  pages,
  post,
  type Refusal,
  type Session,
  type Stands,
  type Summary,
  type Timeline,
} from "./api.js";
import { type People, peopleOf } from "./colours.js";
import { type Change, changes, compare } from "./difference.js";
import { ago, brief, count, moment, plural } from "./format.js";
import { ActivityLog, Checkpoints, Commits, Conflicts, Devices, Refusals } from "./lists.js";
import { Ask, Copy, Link, Online, toSession, Wrong } from "./parts.js";
import { useNow, useRead } from "./reading.js";
import { TimelineView } from "./timeline.js";
import { Tree } from "./tree.js";
import { address, go, useView } from "./view.js";

const TABS = ["commits", "conflicts", "refusals", "checkpoints", "devices", "activity"] as const;
type Tab = (typeof TABS)[number];
const TITLES: { [tab in Tab]: string } = {
  commits: "Commits",
  conflicts: "Conflicts",
  refusals: "Refusals",
  checkpoints: "Checkpoints",
  devices: "Devices",
  activity: "Activity",
};

const THROTTLE_MS = 400;
const SLOWLY_MS = 5_000;
const MOST_LINES = 2_000;
const MOST_MARKS = 1_000;
const DIFFERENCES = 30;
const STATES = 12;

/** Where the session stands, told as it happens; at most so often that it can be read. */
function useStands(sessionId: string): {
  stands: Stands | null;
  line: "live" | "down" | "gone";
  tick: number;
} {
  const [stands, put] = useState<Stands | null>(null);
  const [line, say] = useState<"live" | "down" | "gone">("down");
  const [tick, count] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    let waiting: Stands | null = null;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const show = () => {
      timer = undefined;
      if (waiting === null) return;
      put(waiting);
      count((old) => old + 1);
      waiting = null;
      timer = setTimeout(show, THROTTLE_MS);
    };
    void follow(
      sessionId,
      (told) => {
        say(told === null ? "down" : told === "gone" ? "gone" : "live");
        if (told === null || told === "gone") return;
        waiting = told;
        if (timer === undefined) show();
      },
      abort.signal,
    );
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [sessionId]);
  return { stands, line, tick };
}

export function SessionPage(props: { sessionId: string; writes: boolean }) {
  const { sessionId } = props;
  const { stands, line, tick } = useStands(sessionId);
  const session = useRead(sessionId, tick, (signal) => get<Session>(of(sessionId), {}, signal));
  if (session.data === null) {
    return (
      <section className="page">
        <Link to={address({}, true)} className="back">
          Sessions
        </Link>
        {session.error === null ? (
          <p className="waiting">Opening…</p>
        ) : (
          <Wrong problem={session.error} />
        )}
      </section>
    );
  }
  const found = session.data;
  const online = stands?.epoch === found.epoch ? new Set(stands.online) : null;
  // Who is online is told sooner than the rest is read.
  const devices = found.devices.map((one) => ({
    ...one,
    online: online?.has(one.id) ?? one.online,
  }));
  return <Opened {...props} session={{ ...found, devices }} tick={tick} line={line} />;
}

interface Props {
  sessionId: string;
  writes: boolean;
  session: Session;
  tick: number;
  line: "live" | "down" | "gone";
}

function Opened(props: Props) {
  const { session, sessionId, tick, writes } = props;
  const [view, change] = useView();
  const asked = Number.parseInt(view.get("v") ?? "", 10);
  const following = Number.isNaN(asked);
  const version = following
    ? session.version
    : Math.min(session.version, Math.max(session.first_version, asked));
  const tab = TABS.find((one) => one === view.get("tab")) ?? "commits";
  const slowly = Math.floor(useNow(SLOWLY_MS) / SLOWLY_MS);
  const [dialog, open] = useState<"restore" | "fork" | "checkpoint" | null>(null);
  const [told, tell] = useState<string | null>(null);
  const about = `${sessionId} ${session.epoch}`;

  const choose = (to: number) => change({ v: to === session.version ? null : String(to) }, true);
  const range = { first: session.first_version + 1, last: session.version };
  const empty = range.first > range.last;
  const timeline = useRead(about, `${range.first} ${range.last}`, async (signal) =>
    empty ? null : get<Timeline>(of(sessionId, "/timeline"), range, signal),
  );
  const often = `${tick} ${slowly}`;
  const checkpoints = useRead(about, often, (signal) =>
    pages<Checkpoint>(of(sessionId, "/checkpoints"), {}, MOST_MARKS, signal),
  );
  const conflicts = useRead(about, often, (signal) =>
    pages<Conflict>(of(sessionId, "/conflicts"), {}, MOST_MARKS, signal),
  );
  const refusals = useRead(about, often, (signal) =>
    pages<Refusal>(of(sessionId, "/refusals"), {}, MOST_MARKS, signal),
  );
  const activity = useRead(about, often, (signal) =>
    pages<Activity>(of(sessionId, "/activity"), { limit: 500 }, MOST_LINES, signal),
  );
  // biome-ignore lint/correctness/useExhaustiveDependencies: by what makes them.
  const people = useMemo(
    () => peopleOf(session),
    [JSON.stringify(session.devices.map((one) => [one.id, one.name])), session.clients.length],
  );

  // Keys that work wherever the focus is, but in a field.
  const act = useRef<(key: string) => boolean>(() => false);
  act.current = (key) => {
    const to = { "[": version - 1, "]": version + 1, "{": version - 10, "}": version + 10 }[key];
    if (to !== undefined) choose(Math.min(session.version, Math.max(session.first_version, to)));
    else if (key === "l") change({ v: null }, true);
    else return false;
    return true;
  };
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]"))
        return;
      if (event.target instanceof HTMLInputElement && event.target.type !== "range") return;
      if (act.current(event.key)) event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);

  const numbers: { [tab in Tab]: number } = {
    commits: session.version - session.first_version,
    conflicts: conflicts.data?.length ?? 0,
    refusals: refusals.data?.length ?? 0,
    checkpoints: checkpoints.data?.length ?? 0,
    devices: session.devices.length,
    activity: activity.data?.length ?? 0,
  };
  const problem = [timeline, checkpoints, conflicts, refusals, activity].find(
    (one) => one.error !== null,
  )?.error;

  return (
    <section className="page session" aria-labelledby="title">
      <div className="head">
        <Link to={address({}, true)} className="back">
          Sessions
        </Link>
        <h1 id="title" className="mono cut">
          {sessionId}
        </h1>
        <Copy text={sessionId} label="Copy the session’s id" />
        <span className={`line ${props.line}`} role="status">
          {props.line === "live" ? "Live" : props.line === "gone" ? "Erased" : "Reconnecting…"}
        </span>
        {writes && (
          <div className="actions">
            <button type="button" onClick={() => open("checkpoint")}>
              Save checkpoint
            </button>
            <button type="button" onClick={() => open("fork")}>
              Fork
            </button>
            <button
              type="button"
              onClick={() =>
                download(of(sessionId, "/export"), `${sessionId.replaceAll(":", "_")}.json`).catch(
                  (error: Error) => tell(error.message),
                )
              }
            >
              Export
            </button>
            <button
              type="button"
              className="primary"
              disabled={following}
              onClick={() => open("restore")}
            >
              Restore
            </button>
          </div>
        )}
      </div>
      <Facts session={session} />
      {told !== null && (
        <p className="notice" role="status">
          {told}
        </p>
      )}
      {problem != null && <Wrong problem={problem} />}
      <div className="panel">
        <div className="panel-head">
          <h2>Timeline</h2>
          <p className="soft at">
            Version <strong className="ink">{count(version)}</strong> of {count(session.version)}
            {session.first_version > 0 && ` · kept from ${count(session.first_version)} on`}
          </p>
          <div className="steps">
            <button
              type="button"
              className="small"
              aria-label="One version back"
              disabled={version <= session.first_version}
              onClick={() => choose(version - 1)}
            >
              <kbd>[</kbd>
            </button>
            <button
              type="button"
              className="small"
              aria-label="One version on"
              disabled={version >= session.version}
              onClick={() => choose(version + 1)}
            >
              <kbd>]</kbd>
            </button>
            <button
              type="button"
              className="small"
              disabled={following}
              onClick={() => change({ v: null }, true)}
            >
              Newest <kbd>L</kbd>
            </button>
          </div>
        </div>
        <TimelineView
          session={session}
          timeline={timeline.data}
          people={people}
          checkpoints={checkpoints.data ?? []}
          conflicts={conflicts.data ?? []}
          activity={activity.data ?? []}
          version={version}
          choose={choose}
        />
      </div>
      <div className="columns-2">
        <StateAt session={session} version={version} people={people} />
        <div className="panel lists">
          <div className="tabs" role="tablist" aria-label="What the session keeps">
            {TABS.map((one) => (
              <button
                key={one}
                id={`tab-${one}`}
                type="button"
                role="tab"
                aria-selected={one === tab}
                aria-controls="tabpanel"
                tabIndex={one === tab ? 0 : -1}
                onClick={() => change({ tab: one === "commits" ? null : one }, true)}
                onKeyDown={(event) => {
                  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
                  const to =
                    by === undefined ? undefined : TABS.at((TABS.indexOf(one) + by) % TABS.length);
                  if (to === undefined) return;
                  event.preventDefault();
                  change({ tab: to === "commits" ? null : to }, true);
                  document.getElementById(`tab-${to}`)?.focus();
                }}
              >
                {TITLES[one]} <span className="soft number">{count(numbers[one])}</span>
              </button>
            ))}
          </div>
          <div
            id="tabpanel"
            role="tabpanel"
            // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and keys are to scroll it.
            tabIndex={0}
            aria-labelledby={`tab-${tab}`}
            className={`tab ${tab}`}
          >
            {tab === "commits" && (
              <Commits session={session} people={people} version={version} choose={choose} />
            )}
            {tab === "conflicts" && (
              <Conflicts items={conflicts.data ?? []} people={people} choose={choose} />
            )}
            {tab === "refusals" && <Refusals items={refusals.data ?? []} people={people} />}
            {tab === "checkpoints" && (
              <Checkpoints items={checkpoints.data ?? []} choose={choose} />
            )}
            {tab === "devices" && <Devices session={session} people={people} />}
            {tab === "activity" && <ActivityLog items={activity.data ?? []} people={people} />}
          </div>
        </div>
      </div>
      {dialog === "checkpoint" && (
        <Ask
          title="Save a checkpoint"
          action="Save"
          field="Name (may be left out)"
          close={() => open(null)}
          submit={async (name) => {
            const saved = await post<Checkpoint>(
              of(sessionId, "/checkpoints"),
              name === "" ? {} : { name },
            );
            tell(`Saved a checkpoint of version ${count(saved.version)}.`);
          }}
        >
          <p>It marks the newest version, {count(session.version)}.</p>
        </Ask>
      )}
      {dialog === "fork" && (
        <Ask
          title={`Fork from version ${count(version)}`}
          action="Fork"
          close={() => open(null)}
          submit={async () => {
            const made = await post<Summary>(of(sessionId, "/fork"), { version });
            go(toSession(made.session_id));
          }}
        >
          <p>A session of your own begins with that state. This one stays as it is.</p>
        </Ask>
      )}
      {dialog === "restore" && (
        <Ask
          title={`Restore version ${count(version)}`}
          action="Restore"
          close={() => open(null)}
          submit={async () => {
            const made = await post<Summary>(of(sessionId, "/restore"), { version });
            change({ v: null }, true);
            tell(
              `Version ${count(made.version)} has the state of version ${count(version)}. A checkpoint was made before.`,
            );
          }}
        >
          <p>
            Everybody who is connected sees the change at once. It can be undone by another restore.
          </p>
        </Ask>
      )}
    </section>
  );
}

function Facts(props: { session: Session }) {
  const { session } = props;
  const now = useNow(5_000);
  const online = session.devices.filter((one) => one.online).length;
  return (
    <dl className="facts">
      <div>
        <dt>User</dt>
        <dd className="cut">{session.user_id}</dd>
      </div>
      <div>
        <dt>Schema</dt>
        <dd>
          {session.schema === null
            ? "none"
            : `${session.schema.name} ${session.schema.version ?? ""}`}
        </dd>
      </div>
      <div>
        <dt>Created</dt>
        <dd>{moment(session.created_at)}</dd>
      </div>
      <div>
        <dt>Active</dt>
        <dd>{ago(session.last_activity, now)}</dd>
      </div>
      <div>
        <dt>Devices</dt>
        <dd>
          {session.is_active ? <Online online={online > 0} /> : <span className="tag">ended</span>}{" "}
          <span className="soft">
            {count(online)} of {count(session.devices.length)}
          </span>
        </dd>
      </div>
      {session.members.length > 0 && (
        <div>
          <dt>Members</dt>
          <dd className="cut">
            {session.members.map((one) => `${one.user_id} (${one.role})`).join(", ")}
          </dd>
        </div>
      )}
    </dl>
  );
}

/** The state at a version beside that of the one before, and what is different. */
function StateAt(props: { session: Session; version: number; people: People }) {
  const { session, version } = props;
  const cache = useRef(new Map<string, Json>());
  const [reveal, show] = useState<string | null>(null);
  const before = Math.max(session.first_version, version - 1);
  const about = `${session.session_id} ${session.epoch}`;
  const load = async (number: number, signal: AbortSignal): Promise<Json> => {
    const key = `${about} ${number}`;
    const known = cache.current.get(key);
    if (known !== undefined) return known;
    const { state } = await get<{ state: Json }>(
      of(session.session_id, "/state"),
      { version: number },
      signal,
    );
    cache.current.set(key, state);
    for (const old of cache.current.keys()) {
      if (cache.current.size <= STATES) break;
      cache.current.delete(old);
    }
    return state;
  };
  const read = useRead(
    about,
    version,
    async (signal) => {
      const [then, now, { items }] = await Promise.all([
        load(before, signal),
        load(version, signal),
        get<{ items: Commit[] }>(
          of(session.session_id, "/commits"),
          { first: version, last: version },
          signal,
        ),
      ]);
      return { version, root: compare(now, then), commit: items[0] };
    },
    60,
  );
  const root = read.data?.root;
  const found = useMemo(() => (root === undefined ? [] : changes(root, DIFFERENCES + 1)), [root]);
  return (
    <div className="panel state" aria-busy={!read.fresh}>
      <div className="panel-head">
        <h2>State</h2>
        <p className="soft at" data-version={read.data?.version}>
          {read.data !== null && <By {...read.data} people={props.people} />}
        </p>
      </div>
      {read.error !== null && <Wrong problem={read.error} />}
      {root !== undefined && (
        <>
          <div className="differences">
            <h3>
              {version === session.first_version
                ? "The first version that is kept"
                : found.length === 0
                  ? "Nothing changed in this version"
                  : `${plural(Math.min(found.length, DIFFERENCES), "change")}${found.length > DIFFERENCES ? " and more" : ""} in this version`}
            </h3>
            <ul>
              {found.slice(0, DIFFERENCES).map((one) => (
                <li key={`${one.mark} ${one.path}`}>
                  <button type="button" className="change" onClick={() => show(one.path)}>
                    <Changed change={one} />
                  </button>
                </li>
              ))}
            </ul>
          </div>
          <Tree root={root} reveal={reveal} />
        </>
      )}
    </div>
  );
}

/** Which version it is, and whose. */
function By(props: { version: number; commit: Commit | undefined; people: People }) {
  const { commit } = props;
  const who = props.people.device(commit?.source === "server" ? null : (commit?.device_id ?? null));
  return (
    <>
      at version {count(props.version)}
      {commit !== undefined && (
        <>
          {" · "}
          <span className={`swatch ${who.colour}`} aria-hidden="true" /> {who.name} ·{" "}
          {moment(commit.at)}
        </>
      )}
    </>
  );
}

function Changed(props: { change: Change }) {
  const { change } = props;
  return (
    <>
      <span className={`sign ${change.mark}`} aria-hidden="true" />
      <code className="cut">{change.path === "" ? "(the whole state)" : change.path}</code>
      {change.mark !== "added" && <del className="value cut">{brief(change.before, 100)}</del>}
      {change.mark !== "removed" && <ins className="value cut">{brief(change.after, 100)}</ins>}
    </>
  );
}
