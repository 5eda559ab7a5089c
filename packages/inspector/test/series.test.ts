import { expect, test } from "vitest";
import type { NodeFigures } from "../src/api.js";
import { histogram, mean, quantile, rate } from "../src/series.js";

const figures = (...counts: number[]) => ({
  "t_bucket{0.001}": counts[0] ?? 0,
  "t_bucket{0.01}": counts[1] ?? 0,
  "t_bucket{+Inf}": counts[2] ?? 0,
  t_sum: counts[3] ?? 0,
});

test("quantiles and means are of what came since", () => {
  const before = histogram(figures(10, 10, 10, 1), "t");
  const after = histogram(figures(10, 20, 20, 2), "t");
  expect(quantile(before, after, 0.5)).toBeCloseTo(0.0055);
  expect(mean(after, before)).toBeCloseTo(0.1);
  expect(quantile(after, after, 0.5)).toBeNaN();
  expect(quantile(undefined, histogram(figures(0, 0, 5, 9), "t"), 0.99)).toBe(0.01);
});

test("a rate is by the second, and a node that was started again counts anew", () => {
  const at = [0, 1_000, 2_000, 3_000];
  const series = [5, 15, 25, 2].map(
    (n, index): NodeFigures => ({
      node: "n",
      name: "n",
      at: at[index] ?? 0,
      online: 0,
      figures: { x: n },
    }),
  );
  expect(rate(series, "x")).toEqual([0, 10, 10, 0]);
  expect(rate(series, "y")).toEqual([0, 0, 0, 0]);
});
