// Where versions and moments lie on a timeline, whose measure is versions: 0 is its left end, 1 its
// right one.

import type { Activity, Timeline } from "./api.js";

export interface Axis {
  first: number;
  last: number;
  /** Where a version lies. */
  of(version: number): number;
  /** Where a moment lies: behind the last commit that was made by then. */
  at(moment: number): number;
}

export function axisOf(first: number, last: number, timeline: Timeline | null): Axis {
  const length = Math.max(1, last - first);
  const of = (version: number) => Math.min(1, Math.max(0, (version - first) / length));
  const points = pointsOf(timeline);
  const at = (moment: number): number => {
    let [low, high] = [0, points.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((points[middle]?.[0] ?? 0) <= moment) low = middle + 1;
      else high = middle;
    }
    const [before, after] = [points[low - 1], points[low]];
    if (before === undefined) return 0;
    if (after === undefined) return of(before[1]);
    const part = (moment - before[0]) / Math.max(1, after[0] - before[0]);
    // Between two slots nothing was committed: all of that time lies at one place.
    return after[1] === before[1] ? of(before[1]) : of(before[1] + part * (after[1] - before[1]));
  };
  return { first, last, of, at };
}

/** Moments and the versions that stood then, both growing. */
function pointsOf(timeline: Timeline | null): [number, number][] {
  const slots = new Map<number, { from: number; to: number; first: number; last: number }>();
  for (const one of timeline?.items ?? []) {
    const slot = slots.get(one.slot);
    slots.set(one.slot, {
      from: Math.min(one.first_at, slot?.from ?? one.first_at),
      to: Math.max(one.last_at, slot?.to ?? one.last_at),
      first: Math.min(one.first_version, slot?.first ?? one.first_version),
      last: Math.max(one.last_version, slot?.last ?? one.last_version),
    });
  }
  const points: [number, number][] = [];
  let latest = 0;
  for (const { from, to, first, last } of slots.values()) {
    // Work that was made offline is older than what was committed before it.
    for (const [moment, version] of [
      [from, first - 1],
      [to, last],
    ] as const) {
      latest = Math.max(latest, moment);
      points.push([latest, version]);
    }
  }
  return points;
}

export interface Band {
  from: number;
  /** Null while it lasts. */
  to: number | null;
  why: string | null;
}

/** When each device was connected, oldest first, from the activity log, newest first. */
export function bandsOf(activity: readonly Activity[]): Map<string, Band[]> {
  const bands = new Map<string, Band[]>();
  for (const line of [...activity].reverse()) {
    const device = line.device_id;
    if (device === null) continue;
    const known = bands.get(device) ?? [];
    const open = known.at(-1);
    if (line.activity_type === "connected" && (open === undefined || open.to !== null)) {
      known.push({ from: line.at, to: null, why: null });
    } else if (line.activity_type === "disconnected") {
      const why = typeof line.data.why === "string" ? line.data.why : null;
      // Where its beginning is no longer kept, it was there from the beginning.
      if (open === undefined) known.push({ from: 0, to: line.at, why });
      else if (open.to === null) Object.assign(open, { to: line.at, why });
    } else continue;
    bands.set(device, known);
  }
  return bands;
}
