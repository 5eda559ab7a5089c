// What a session keeps beside its state, list by list.

import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import {
  type Activity,
  type Checkpoint,
  type Commit,
  type Conflict,
  get,
  type Json,
  of,
  type Refusal,
  type Session,
  type Side,
} from "./api.js";
import { nameOf, type People } from "./colours.js";
import { ago, brief, bytes, count, moment, plural } from "./format.js";
import { Empty, Online } from "./parts.js";
import { useNow } from "./reading.js";
import { VirtualList } from "./virtual.js";

const CHUNK = 200;
const COMMIT = 48;

/** The log, newest first; a chunk of it is read when it comes in sight. */
export function Commits(props: {
  session: Session;
  people: People;
  version: number;
  choose: (version: number) => void;
}) {
  const { session, people, version } = props;
  const [first, last] = [session.first_version, session.version];
  const [chunks, put] = useState<ReadonlyMap<number, ReadonlyMap<number, Commit>>>(new Map());
  const [range, look] = useState<[number, number]>([0, 0]);
  const asked = useRef(new Map<number, number>());

  // biome-ignore lint/correctness/useExhaustiveDependencies: another history has other commits.
  useEffect(() => {
    asked.current.clear();
    put(new Map());
  }, [session.epoch]);

  useEffect(() => {
    const abort = new AbortController();
    const chunkOf = (number: number) => Math.floor((number - 1) / CHUNK);
    const [low, high] = [Math.max(first + 1, last - range[1]), last - range[0]];
    for (let chunk = chunkOf(Math.max(1, low)); chunk <= chunkOf(Math.max(1, high)); chunk++) {
      const [from, to] = [chunk * CHUNK + 1, (chunk + 1) * CHUNK];
      const upTo = Math.min(to, last);
      if ((asked.current.get(chunk) ?? 0) >= upTo) continue;
      asked.current.set(chunk, upTo);
      get<{ items: Commit[] }>(of(session.session_id, "/commits"), { first: from, last: to }).then(
        ({ items }) => {
          if (abort.signal.aborted && asked.current.get(chunk) !== upTo) return;
          put((old) => new Map(old).set(chunk, new Map(items.map((one) => [one.version, one]))));
        },
        () => asked.current.delete(chunk),
      );
    }
    return () => abort.abort();
  }, [range, first, last, session.session_id]);

  const seen = useCallback((from: number, to: number) => look([from, to]), []);
  if (first === last)
    return <Empty title="No commits">Nothing was written since it was created.</Empty>;
  return (
    <VirtualList
      label="Commits, newest first"
      count={last - first}
      height={COMMIT}
      chosen={version > first ? last - version : -1}
      choose={(index) => props.choose(last - index)}
      seen={seen}
      row={(index) => {
        const number = last - index;
        const commit = chunks.get(Math.floor((number - 1) / CHUNK))?.get(number);
        if (commit === undefined) return <div className="commit soft">{count(number)}</div>;
        return <CommitLine commit={commit} people={people} />;
      }}
    />
  );
}

function CommitLine(props: { commit: Commit; people: People }) {
  const { commit } = props;
  const who = props.people.device(commit.source === "server" ? null : commit.device_id);
  return (
    <div className="commit">
      <span className={`swatch ${who.colour}`} aria-hidden="true" />
      <span className="number version">{count(commit.version)}</span>
      <span className="cut paths mono">
        {commit.restored !== null
          ? `restored ${count(commit.restored)}`
          : commit.paths.length === 0
            ? "no effect"
            : commit.paths.join("  ")}
        {commit.more_paths > 0 && ` +${commit.more_paths}`}
      </span>
      <span className="cut by soft">
        {who.name} · {moment(commit.at)} · {bytes(commit.bytes)}
        {commit.conflicts > 0 && (
          <span className="says"> {plural(commit.conflicts, "conflict")}</span>
        )}
      </span>
    </div>
  );
}

export function Conflicts(props: {
  items: readonly Conflict[];
  people: People;
  choose: (version: number) => void;
}) {
  if (props.items.length === 0) {
    return (
      <Empty title="No conflicts">
        Every value that anybody wrote was kept, merged or replaced knowingly.
      </Empty>
    );
  }
  return (
    <ul className="cards">
      {props.items.map((one) => (
        <li key={one.id} className="card">
          <div className="card-head">
            <code className="cut">{one.path === "" ? "(the whole state)" : one.path}</code>
            <span className={one.status === "open" ? "tag warn" : "tag"}>{one.status}</span>
            <span className="tag">{one.policy}</span>
            <button type="button" className="quiet small" onClick={() => props.choose(one.version)}>
              Version {count(one.version)}
            </button>
          </div>
          <div className="sides">
            <SideOf title="Kept" side={one.kept} people={props.people} />
            <SideOf title="Lost" side={one.lost} people={props.people} />
          </div>
        </li>
      ))}
    </ul>
  );
}

function SideOf(props: { title: string; side: Side; people: People }) {
  const { side } = props;
  const who = props.people.device(side.by?.device_id ?? null);
  return (
    <div className={`side ${props.title.toLowerCase()}`}>
      <span className="name">{props.title}</span>
      <Block value={side.absent ? undefined : side.value} />
      <span className="soft">
        <span className={`swatch ${who.colour}`} aria-hidden="true" /> {who.name} ·{" "}
        {moment(side.at)}
      </span>
    </div>
  );
}

const MOST = 2_000;

function Block(props: { value: Json | undefined }) {
  const text = props.value === undefined ? "absent" : JSON.stringify(props.value, null, 2);
  return <pre>{text.length > MOST ? `${text.slice(0, MOST)}…` : text}</pre>;
}

export function Refusals(props: { items: readonly Refusal[]; people: People }) {
  if (props.items.length === 0) {
    return (
      <Empty title="Nothing was refused">
        What a schema, a role or a test refuses appears here.
      </Empty>
    );
  }
  return (
    <ul className="cards">
      {props.items.map((one) => {
        const who = props.people.client(one.client_id);
        return (
          <li key={`${one.client_id} ${one.refusal.seq}`} className="card">
            <div className="card-head">
              <code>{one.refusal.code}</code>
              {one.refusal.path !== undefined && (
                <code className="cut soft">{one.refusal.path}</code>
              )}
              <span className="soft right">{moment(one.at)}</span>
            </div>
            <p>{one.refusal.message}</p>
            <p className="soft">
              <span className={`swatch ${who.colour}`} aria-hidden="true" /> {who.name} · its change{" "}
              {count(one.refusal.seq)}
            </p>
          </li>
        );
      })}
    </ul>
  );
}

export function Checkpoints(props: {
  items: readonly Checkpoint[];
  choose: (version: number) => void;
}) {
  if (props.items.length === 0) {
    return (
      <Empty title="No checkpoints">They are made when the last device leaves, or by hand.</Empty>
    );
  }
  return (
    <ul className="cards">
      {props.items.map((one) => (
        <li key={one.id} className="card">
          <div className="card-head">
            <strong className="cut">{one.name ?? NAMES[one.kind]}</strong>
            {one.name !== null && <span className="tag">{NAMES[one.kind]}</span>}
            {one.step !== undefined && one.step !== null && (
              <span className="tag">step {brief(one.step, 40)}</span>
            )}
            <button type="button" className="quiet small" onClick={() => props.choose(one.version)}>
              Version {count(one.version)}
            </button>
          </div>
          <p className="soft">{moment(one.created_at)}</p>
          {one.data !== undefined && <Block value={one.data} />}
        </li>
      ))}
    </ul>
  );
}

const NAMES: { [kind in Checkpoint["kind"]]: string } = {
  automatic: "Automatic",
  named: "By hand",
  before_restore: "Before a restore",
};

export function Devices(props: { session: Session; people: People }) {
  const now = useNow(5_000);
  if (props.session.devices.length === 0) {
    return <Empty title="No devices">Nobody has connected to this session yet.</Empty>;
  }
  return (
    <ul className="cards">
      {props.session.devices.map((device) => (
        <li key={device.id} className="card">
          <div className="card-head">
            <span
              className={`swatch ${props.people.device(device.id).colour}`}
              aria-hidden="true"
            />
            <strong className="cut">{nameOf(device)}</strong>
            <Online online={device.online} />
            {device.is_primary && <span className="tag">primary</span>}
            {device.revoked_at !== null && <span className="tag warn">revoked</span>}
          </div>
          <dl>
            <dt>Id</dt>
            <dd className="mono cut">{device.id}</dd>
            <dt>User</dt>
            <dd className="cut">{device.user_id}</dd>
            <dt>First seen</dt>
            <dd>{moment(device.created_at)}</dd>
            <dt>Last seen</dt>
            <dd>{ago(device.last_activity, now)}</dd>
            <dt>Has version</dt>
            <dd>{device.version === null ? "unknown" : count(device.version)}</dd>
            <dt>Says of itself</dt>
            <dd className="mono">{brief(device.info)}</dd>
          </dl>
        </li>
      ))}
    </ul>
  );
}

const LINE = 32;

export function ActivityLog(props: { items: readonly Activity[]; people: People }) {
  const [chosen, choose] = useState(-1);
  const lines = useMemo(() => props.items, [props.items]);
  if (lines.length === 0)
    return <Empty title="No activity">What is older than it is kept is gone.</Empty>;
  return (
    <VirtualList
      label="Activity, newest first"
      count={lines.length}
      height={LINE}
      chosen={chosen}
      choose={choose}
      row={(index) => {
        const line = lines[index];
        if (line === undefined) return null;
        const who =
          line.device_id === null
            ? (line.user_id ?? "server")
            : props.people.device(line.device_id).name;
        const data = Object.keys(line.data).length > 0 ? brief(line.data, 120) : "";
        return (
          <div className="activity">
            <span className="soft number">{moment(line.at)}</span>
            <span
              className={
                line.activity_type === "disconnected" || line.activity_type === "refused"
                  ? "what bad"
                  : "what"
              }
            >
              {line.activity_type.replaceAll("_", " ")}
            </span>
            <span className="cut">
              {line.device_id !== null && (
                <span
                  className={`swatch ${props.people.device(line.device_id).colour}`}
                  aria-hidden="true"
                />
              )}{" "}
              {who}
            </span>
            <span className="cut soft mono">{data}</span>
          </div>
        );
      }}
    />
  );
}
