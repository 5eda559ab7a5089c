// The log from its oldest version to its newest: who committed how much, what was marked, who was
// there. The slider below is what chooses a version; the picture is for the eyes and the mouse.

import { useMemo } from "react";
import type { Activity, Checkpoint, Conflict, Session, Timeline } from "./api.js";
import { type Axis, axisOf, type Band, bandsOf } from "./axis.js";
import { nameOf, type People } from "./colours.js";
import { count, moment, plural } from "./format.js";

const WIDE = 1000;
const HIGH = 72;
const BAND = 10;

interface Props {
  session: Session;
  timeline: Timeline | null;
  people: People;
  checkpoints: readonly Checkpoint[];
  conflicts: readonly Conflict[];
  activity: readonly Activity[];
  version: number;
  choose: (version: number) => void;
}

export function TimelineView(props: Props) {
  const { session, timeline, people, version, choose } = props;
  const [first, last] = [session.first_version, session.version];
  const axis = useMemo(() => axisOf(first, last, timeline), [first, last, timeline]);
  const bands = useMemo(() => bandsOf(props.activity), [props.activity]);
  const marks = props.checkpoints.filter((one) => one.version >= first);
  const point = (event: { clientX: number; currentTarget: Element }) => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    const part = (event.clientX - left) / width;
    choose(Math.round(first + part * (last - first)));
  };
  const step = (by: number) => choose(Math.min(last, Math.max(first, version + by)));
  const x = axis.of(version) * WIDE;
  return (
    <div className="timeline">
      {/* biome-ignore lint/a11y/useKeyWithClickEvents: the slider below does the same. */}
      <svg
        className="chart"
        viewBox={`0 0 ${WIDE} ${HIGH}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={`${plural(last - first, "commit")} by ${plural(session.devices.length, "device")}`}
        onClick={point}
      >
        <Bars axis={axis} timeline={timeline} people={people} />
        {props.conflicts.map((one) => (
          <line
            key={one.id}
            className="conflict-line"
            x1={axis.of(one.version) * WIDE}
            x2={axis.of(one.version) * WIDE}
            y1={0}
            y2={HIGH}
          />
        ))}
        <line className="cursor" x1={x} x2={x} y1={0} y2={HIGH} />
      </svg>
      <div className="marks">
        {marks.map((one) => (
          <button
            key={one.id}
            type="button"
            className={`mark ${one.kind}`}
            style={{ left: `${axis.of(one.version) * 100}%` }}
            title={titleOf(one)}
            aria-label={titleOf(one)}
            onClick={() => choose(one.version)}
          />
        ))}
      </div>
      <div className="slider">
        <input
          type="range"
          min={first}
          max={last}
          value={version}
          aria-label="Version"
          aria-valuetext={`version ${version} of ${last}`}
          disabled={first === last}
          onChange={(event) => choose(event.target.valueAsNumber)}
          onKeyDown={(event) => {
            // A page is a hundredth of the log, and more than one version.
            const page = Math.max(10, Math.round((last - first) / 100));
            if (event.key === "PageUp" || event.key === "PageDown") {
              event.preventDefault();
              step(event.key === "PageUp" ? page : -page);
            }
          }}
        />
      </div>
      <section className="bands" aria-label="Who was connected when" {...{ tabIndex: 0 }}>
        {session.devices.map((device) => (
          <div key={device.id} className="band">
            <span className={`band-name cut ${people.device(device.id).colour}`}>
              {nameOf(device)}
            </span>
            <Presence
              axis={axis}
              bands={bands.get(device.id) ?? []}
              colour={people.device(device.id).colour}
            />
          </div>
        ))}
      </section>
    </div>
  );
}

function Bars(props: { axis: Axis; timeline: Timeline | null; people: People }) {
  const { axis, timeline, people } = props;
  const bars = useMemo(() => {
    if (timeline === null) return [];
    const slots = new Map<number, typeof timeline.items>();
    for (const one of timeline.items) slots.set(one.slot, [...(slots.get(one.slot) ?? []), one]);
    // High bars are of many bytes, and a few bytes can still be seen.
    const weigh = (bytes: number) => Math.log2(1 + bytes / 64);
    const weights = [...slots.values()].map((all) =>
      weigh(all.reduce((sum, one) => sum + one.bytes, 0)),
    );
    const most = Math.max(1, ...weights);
    return [...slots].flatMap(([slot, all], index) => {
      const from = axis.of(timeline.first - 1 + slot * timeline.width) * WIDE;
      const to = axis.of(timeline.first - 1 + (slot + 1) * timeline.width) * WIDE;
      const total = all.reduce((sum, one) => sum + one.bytes, 0);
      const high = Math.max(6, ((weights[index] ?? 0) / most) * (HIGH - 8));
      let top = HIGH;
      return all.map((one) => {
        const height = high * (one.bytes / Math.max(1, total));
        top -= height;
        const gap = to - from > 3 ? 1 : 0;
        return {
          key: `${slot} ${one.client_id}`,
          colour: people.client(one.client_id).colour,
          x: from,
          y: top,
          width: Math.max(0.5, to - from - gap),
          height,
        };
      });
    });
  }, [axis, timeline, people]);
  return bars.map(({ key, colour, ...place }) => (
    <rect key={key} className={`bar ${colour}`} {...place} />
  ));
}

function Presence(props: { axis: Axis; bands: readonly Band[]; colour: string }) {
  const told = props.bands
    .map((one) => `${moment(one.from)} to ${one.to === null ? "now" : moment(one.to)}`)
    .join("; ");
  return (
    <svg
      className="presence"
      viewBox={`0 0 ${WIDE} ${BAND}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={props.bands.length === 0 ? "never seen in what is kept" : `connected ${told}`}
    >
      <line className="away" x1={0} x2={WIDE} y1={BAND / 2} y2={BAND / 2} />
      {props.bands.map((one) => {
        const from = props.axis.at(one.from) * WIDE;
        const to = one.to === null ? WIDE : props.axis.at(one.to) * WIDE;
        return (
          <g key={one.from}>
            <rect
              className={`present ${props.colour}`}
              x={Math.min(from, WIDE - 4)}
              y={2}
              width={Math.max(4, to - from)}
              height={BAND - 4}
            />
            {one.to !== null && <line className="gone" x1={to} x2={to} y1={0} y2={BAND} />}
          </g>
        );
      })}
    </svg>
  );
}

function titleOf(mark: Checkpoint): string {
  const kind = mark.kind === "before_restore" ? "Before a restore" : "Automatic checkpoint";
  return `${mark.name ?? (mark.kind === "named" ? "Checkpoint" : kind)}, version ${count(mark.version)}`;
}
