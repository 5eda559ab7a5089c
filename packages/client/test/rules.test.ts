import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";

const HERE = new URL("./", import.meta.url);
const PROTOCOL = new URL("../../../docs/protocol.md", HERE);

/** The rules of docs/protocol.md that say what a client does. */
const RULES = [
  ...["V1", "V2", "V3", "V4", "V5", "P1", "P2", "P3", "P4", "C1", "C2", "W2", "W4"],
  ...["O1", "O2", "O3", "O4", "O5", "O6", "O7", "O9"],
  ...["TX1", "TX2", "TX3", "TX4", "TX5", "TX6"],
  ...[
    "X2",
    "X3",
    "X4",
    "X5",
    "X6",
    "B1",
    "B2",
    "B3",
    "B4",
    "B5",
    "B6",
    "E1",
    "R1",
    "R2",
    "F1",
    "F3",
  ],
  ...["L1", "L2", "L3", "L4", "L7", "L8", "H1", "H2"],
];

test("every rule that concerns a client has a test that names it", () => {
  const protocol = readFileSync(PROTOCOL, "utf8");
  const files = readdirSync(HERE, { recursive: true, encoding: "utf8" });
  const sources = files
    .filter((file) => file.endsWith(".test.ts"))
    .map((file) => readFileSync(new URL(file, HERE), "utf8"));
  const named = new Set(
    sources.flatMap((source) =>
      [...source.matchAll(/"((?:[A-Z]+\d+(?:, )?)+): /g)].flatMap(([, rules = ""]) =>
        rules.split(", "),
      ),
    ),
  );
  expect(RULES.filter((rule) => !named.has(rule))).toEqual([]);
  for (const rule of named) expect(protocol).toMatch(new RegExp(`\\*\\*${rule}\\*\\*`));
});
