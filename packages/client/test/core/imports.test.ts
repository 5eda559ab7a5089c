import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";

const CORE = new URL("../../src/core/", import.meta.url);

test("the core imports only itself, and reads no clock, no randomness and no page", () => {
  const files = readdirSync(CORE);
  expect(files.length).toBeGreaterThan(8);
  for (const file of files) {
    const source = readFileSync(new URL(file, CORE), "utf8");
    for (const [, from] of source.matchAll(/\bfrom "([^"]+)"|import\("([^"]+)"\)/g)) {
      expect(from, file).toMatch(/^\.\/[a-z.]+\.js$/);
    }
    const code = source.replace(/\/\*[\s\S]*?\*\/|\/\/.*|"[^"]*"|`[^`]*`/g, "");
    const impure =
      /\b(Date|Math\.random|crypto|globalThis|window|document|navigator|setTimeout|async|await)\b/;
    expect(code.match(impure)?.[0], file).toBeUndefined();
  }
});
