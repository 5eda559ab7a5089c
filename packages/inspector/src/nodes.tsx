// What the nodes do, with the last two minutes of it as small plots.

import { useEffect, useState } from "react";
import { get, type NodeFigures, Problem } from "./api.js";
import { bytes, count, decimal, latency, plural, span } from "./format.js";
import { Empty, Wrong } from "./parts.js";
import { type Histogram, histogram, mean, quantile, rate } from "./series.js";

const EVERY_MS = 1_000;
const KEPT = 120;

export function Nodes() {
  const [nodes, put] = useState<ReadonlyMap<string, readonly NodeFigures[]> | null>(null);
  const [problem, fail] = useState<Problem | null>(null);
  useEffect(() => {
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = () => {
      get<{ items: NodeFigures[] }>("nodes", {}, abort.signal).then(
        ({ items }) => {
          fail(null);
          put((old) => {
            const next = new Map<string, readonly NodeFigures[]>();
            for (const one of items) {
              const series = old?.get(one.node) ?? [];
              // Another node may have told the same moment twice.
              const known = series.at(-1)?.at === one.at ? series : [...series, one];
              next.set(one.node, known.slice(-KEPT));
            }
            return next;
          });
          timer = setTimeout(read, EVERY_MS);
        },
        (error: unknown) => {
          if (abort.signal.aborted) return;
          fail(error instanceof Problem ? error : new Problem(0, "error", String(error)));
          timer = setTimeout(read, EVERY_MS);
        },
      );
    };
    read();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, []);
  return (
    <section className="page nodes" aria-labelledby="title">
      <div className="head">
        <h1 id="title">Server</h1>
        <p className="soft">
          {nodes === null ? "" : nodes.size === 1 ? "1 node" : `${count(nodes.size)} nodes`}
        </p>
      </div>
      {problem !== null && <Wrong problem={problem} />}
      {nodes === null && problem === null && <p className="waiting">Asking the nodes…</p>}
      {nodes?.size === 0 && <Empty title="No node answers" />}
      {[...(nodes ?? [])].map(([node, series]) => (
        <NodeView key={node} series={series} />
      ))}
      <p className="soft foot">
        Plots show the last two minutes since this page was opened. For longer, have Prometheus read
        /metrics.
      </p>
    </section>
  );
}

function NodeView(props: { series: readonly NodeFigures[] }) {
  const { series } = props;
  const now = series.at(-1);
  if (now === undefined) return null;
  const at = (name: string) => now.figures[name] ?? 0;
  const all = (name: string) => series.map((one) => one.figures[name] ?? 0);
  const rates = (name: string) => rate(series, name);
  const seconds = series.map((one) => histogram(one.figures, "append_seconds"));
  const parts = series.map((one) => histogram(one.figures, "batch_sessions"));
  const latencies = windows(seconds, (before, after) => quantile(before, after, 0.5) * 1_000);
  const commits = rates("commits_total");
  const hits = at("snapshots_total{hit}");
  const misses = at("snapshots_total{miss}");
  const hasBus = "bus_up" in now.figures;
  const started = at("process_start_time_seconds") * 1_000;
  const tail = parts.at(-1);
  const worst = quantile(seconds.at(-11) ?? seconds[0], seconds.at(-1), 0.99) * 1_000;
  return (
    <article className="node panel" aria-label={`Node ${now.name}`}>
      <div className="panel-head">
        <h2>{now.name}</h2>
        <p className="soft">{started > 0 && `up for ${span(now.at - started)}`}</p>
        <div className="health">
          <Health
            name="Database"
            good={at("database_up") === 1}
            outages={at("database_outages_total")}
          />
          {hasBus ? (
            <Health name="Bus" good={at("bus_up") === 1} outages={at("bus_outages_total")} />
          ) : (
            <span className="tag">No bus</span>
          )}
        </div>
      </div>
      <div className="tiles">
        <Tile
          name="Connections"
          value={count(at("connections"))}
          note={`${plural(at("sessions_open"), "session")} open`}
          series={all("connections")}
        />
        <Tile
          name="Commits a second"
          value={decimal(commits.at(-1) ?? 0)}
          note={`${count(at("commits_total"))} in all, ${count(at("refusals_total"))} refused`}
          series={commits}
        />
        <Tile
          name="Batch durable within"
          value={
            latencies.at(-1) === undefined || Number.isNaN(latencies.at(-1))
              ? "–"
              : latency(latencies.at(-1) ?? 0)
          }
          note={Number.isNaN(worst) ? "median; nothing in 10 s" : `median; 99 % ${latency(worst)}`}
          series={latencies}
        />
        <Tile
          name="Sessions a batch"
          value={tail === undefined || tail.count === 0 ? "–" : decimal(mean(tail))}
          note={`${count(tail?.count ?? 0)} batches, ${count(at("batches_lost_total"))} lost`}
          series={windows(parts, (before, after) => mean(after, before))}
        />
        <Tile
          name="Resumes"
          value={count(at("resumes_total{delta}") + at("resumes_total{snapshot}"))}
          note={`${count(at("resumes_total{delta}"))} delta, ${count(at("resumes_total{snapshot}"))} snapshot`}
          series={rates("resumes_total{delta}").map(
            (one, index) => one + (rates("resumes_total{snapshot}")[index] ?? 0),
          )}
        />
        <Tile
          name="Changes in line"
          value={count(at("changes_waiting"))}
          note={`${bytes(at("changes_waiting_bytes"))} not durable yet`}
          series={all("changes_waiting")}
        />
        <Tile
          name="Sessions opened"
          value={count(at("loads_total"))}
          note={
            hasBus
              ? `${count(hits)} from the cache, ${count(misses)} without`
              : `${count(at("loads_failed_total"))} failed`
          }
          series={rates("loads_total")}
        />
        {hasBus && (
          <Tile
            name="Bus messages a second"
            value={decimal(rates("bus_messages_total{sent}").at(-1) ?? 0)}
            note={`${count(at("bus_messages_total{heard}"))} heard, ${count(at("bus_messages_total{dropped}"))} dropped`}
            series={rates("bus_messages_total{sent}")}
          />
        )}
        <Tile
          name="Memory"
          value={bytes(at("process_resident_memory_bytes"))}
          note={`${count(at("process_open_fds"))} files open`}
          series={all("process_resident_memory_bytes")}
        />
        <Tile
          name="Processor"
          value={`${decimal((rates("process_cpu_seconds_total").at(-1) ?? 0) * 100)} %`}
          note="of one core"
          series={rates("process_cpu_seconds_total")}
        />
      </div>
    </article>
  );
}

/** What a figure came to over the ten samples before each one. */
function windows(
  series: readonly Histogram[],
  of: (before: Histogram | undefined, after: Histogram) => number,
): number[] {
  return series.map((one, index) => of(series[Math.max(0, index - 10)], one));
}

function Health(props: { name: string; good: boolean; outages: number }) {
  const times = props.outages > 0 ? `, was away ${plural(props.outages, "time")}` : "";
  return (
    <span className={props.good ? "dot on" : "dot off"}>
      {props.name} {props.good ? "works" : "is away"}
      {times}
    </span>
  );
}

function Tile(props: { name: string; value: string; note: string; series: readonly number[] }) {
  return (
    <div className="tile">
      <h3>{props.name}</h3>
      <p className="figure">{props.value}</p>
      <Spark series={props.series} />
      <p className="soft note">{props.note}</p>
    </div>
  );
}

const WIDE = 240;
const HIGH = 36;

function Spark(props: { series: readonly number[] }) {
  const known = props.series.map((one) => (Number.isFinite(one) ? one : 0));
  const most = Math.max(...known, Number.MIN_VALUE);
  const points = known.map((one, index) => {
    const x = WIDE - (known.length - 1 - index) * (WIDE / (KEPT - 1));
    return `${x.toFixed(1)},${(HIGH - 2 - (one / most) * (HIGH - 4)).toFixed(1)}`;
  });
  return (
    <svg
      className="spark"
      viewBox={`0 0 ${WIDE} ${HIGH}`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <line className="ground" x1={0} x2={WIDE} y1={HIGH - 1} y2={HIGH - 1} />
      <polyline points={points.join(" ")} />
    </svg>
  );
}
