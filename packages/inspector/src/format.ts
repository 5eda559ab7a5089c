// How numbers, times and values are written.

import type { Json } from "./api.js";

const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const WHOLE = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });

export const count = (value: number) => WHOLE.format(value);

/** A moment: the time alone where it is of today. */
export function moment(at: number, now = Date.now()): string {
  const [then, today] = [new Date(at), new Date(now)];
  const time = CLOCK.format(then);
  return then.toDateString() === today.toDateString() ? time : `${DAY.format(then)}, ${time}`;
}

const STEPS: readonly (readonly [number, string])[] = [
  [86_400_000, "d"],
  [3_600_000, "h"],
  [60_000, "min"],
  [1_000, "s"],
];

/** How long something took, in its largest unit. */
export function span(ms: number): string {
  for (const [unit, name] of STEPS) if (ms >= unit) return `${WHOLE.format(ms / unit)} ${name}`;
  return `${WHOLE.format(ms)} ms`;
}

export function ago(at: number, now = Date.now()): string {
  return now - at < 1_000 ? "now" : `${span(now - at)} ago`;
}

export function bytes(value: number): string {
  if (value < 1024) return `${WHOLE.format(value)} B`;
  const kib = value / 1024;
  return kib < 1024 ? `${SHORT.format(kib)} KiB` : `${SHORT.format(kib / 1024)} MiB`;
}

export function decimal(value: number): string {
  return value >= 100 ? WHOLE.format(value) : SHORT.format(value);
}

/** A duration of a few parts of a second. */
export function latency(ms: number): string {
  return ms < 1 ? `${ms.toFixed(2)} ms` : `${decimal(ms)} ms`;
}

const MOST = 160;

/** A value in one line, cut where it is long. */
export function brief(value: Json | undefined, most = MOST): string {
  if (value === undefined) return "absent";
  if (Array.isArray(value) && value.length > 20) return `[ ${count(value.length)} elements ]`;
  const text = JSON.stringify(value);
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

export function plural(number: number, one: string, many = `${one}s`): string {
  return `${count(number)} ${number === 1 ? one : many}`;
}
