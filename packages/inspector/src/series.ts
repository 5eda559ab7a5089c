// Rates and quantiles out of totals that only grow.

import type { NodeFigures } from "./api.js";

export interface Histogram {
  /** Bounds and how many values were at most each, growing; the last bound is infinite. */
  buckets: readonly (readonly [number, number])[];
  sum: number;
  count: number;
}

export function histogram(figures: { [name: string]: number }, name: string): Histogram {
  const buckets: [number, number][] = [];
  const start = `${name}_bucket{`;
  for (const [key, value] of Object.entries(figures)) {
    if (!key.startsWith(start)) continue;
    const bound = key.slice(start.length, -1);
    buckets.push([bound === "+Inf" ? Number.POSITIVE_INFINITY : Number(bound), value]);
  }
  buckets.sort(([one], [other]) => one - other);
  return { buckets, sum: figures[`${name}_sum`] ?? 0, count: buckets.at(-1)?.[1] ?? 0 };
}

/** The mean of what came after `before`; NaN where nothing did. */
export function mean(after: Histogram, before?: Histogram): number {
  return (after.sum - (before?.sum ?? 0)) / (after.count - (before?.count ?? 0));
}

/** A quantile of what came after `before`, between the bounds that it lies in; NaN of nothing. */
export function quantile(
  before: Histogram | undefined,
  after: Histogram | undefined,
  part: number,
): number {
  if (after === undefined) return Number.NaN;
  const known = new Map(before?.buckets);
  const total = after.count - (before?.count ?? 0);
  if (total <= 0) return Number.NaN;
  let [low, below] = [0, 0];
  for (const [bound, value] of after.buckets) {
    const here = value - (known.get(bound) ?? 0);
    if (here >= part * total) {
      if (bound === Number.POSITIVE_INFINITY) return low;
      return low + (bound - low) * ((part * total - below) / Math.max(1, here - below));
    }
    [low, below] = [bound, here];
  }
  return low;
}

/** How much a total grew a second, from sample to sample; the first has no rate yet: 0. */
export function rate(series: readonly NodeFigures[], name: string): number[] {
  return series.map((one, index) => {
    const before = series[Math.max(0, index - 3)];
    if (before === undefined || before.at === one.at) return 0;
    const grown = (one.figures[name] ?? 0) - (before.figures[name] ?? 0);
    // A node that was started again counts from 0.
    return Math.max(0, grown) / ((one.at - before.at) / 1_000);
  });
}
