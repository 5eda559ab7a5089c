import { expect, test } from "vitest";
import type { Activity, Slot, Timeline } from "../src/api.js";
import { axisOf, bandsOf } from "../src/axis.js";

const slot = (number: number, at: [number, number], versions: [number, number]): Slot => ({
  slot: number,
  client_id: "c",
  commits: 1,
  bytes: 1,
  first_version: versions[0],
  last_version: versions[1],
  first_at: at[0],
  last_at: at[1],
});
const timeline = (...items: Slot[]): Timeline => ({ first: 1, last: 20, width: 10, items });

test("versions lie from 0 to 1, and none beyond", () => {
  const axis = axisOf(10, 20, null);
  expect([5, 10, 15, 20, 25].map(axis.of)).toEqual([0, 0, 0.5, 1, 1]);
  expect(axisOf(0, 0, null).of(0)).toBe(0);
});

test("a moment lies behind what was committed by then", () => {
  const axis = axisOf(
    0,
    20,
    timeline(slot(0, [100, 200], [1, 10]), slot(1, [900, 1_000], [11, 20])),
  );
  expect(axis.at(0)).toBe(0);
  expect(axis.at(150)).toBeCloseTo(0.25);
  // Nobody wrote: it all lies at one place.
  expect(axis.at(300)).toBe(0.5);
  expect(axis.at(800)).toBe(0.5);
  expect(axis.at(2_000)).toBe(1);
});

test("work that was made offline does not turn time back", () => {
  const axis = axisOf(0, 20, timeline(slot(0, [500, 600], [1, 10]), slot(1, [100, 700], [11, 20])));
  expect(axis.at(99)).toBe(0);
  expect(axis.at(600)).toBe(0.5);
  expect(axis.at(700)).toBe(1);
});

const line = (activity_type: string, at: number, device_id: string | null = "d"): Activity => ({
  activity_type,
  at,
  user_id: "u",
  device_id,
  data: { why: "closed" },
});

test("a device was there from connected to disconnected, and is while nothing ends it", () => {
  const log = [
    line("connected", 50),
    line("disconnected", 30),
    line("created", 25, null),
    line("connected", 20),
    line("connected", 10),
  ];
  expect(bandsOf(log).get("d")).toEqual([
    { from: 10, to: 30, why: "closed" },
    { from: 50, to: null, why: null },
  ]);
});

test("where its beginning is no longer kept, it was there from the beginning", () => {
  const found = bandsOf([line("disconnected", 30)]).get("d");
  expect(found).toEqual([{ from: 0, to: 30, why: "closed" }]);
});
